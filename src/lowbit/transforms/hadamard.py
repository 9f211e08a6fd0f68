"""Randomized Hadamard: spread every weight and every outlier over all the others, for one bit per row and column.

    W' = (Q_N S_N) W (Q_K S_K)^T,    H' = (Q_K S_K) H (Q_K S_K)^T,    S random signs, Q orthogonal with equal |entries|

The entries of W' are nearly Gaussian and its largest is small (incoherence), which is what a fixed code can be made
for. Mixing n features needs an orthogonal Q of order n = 2^p m, m odd. In this order the first that exists is taken:

    Sylvester(2^(p-t)) kron Hadamard(2^t m)    smallest t that `lowbit.core.hadamard` constructs, 2^t m <= 2048
    Sylvester(2^p) kron Orthogonal(m)          a fixed random orthogonal matrix, m <= 2048

so 11008 = 64 * 172 and 18944 = 128 * 148 are true Hadamard, 13696 = 128 * 107 mixes its 107 by the second form, and
only dimensions with an odd part above 2048 are refused. With a `width`, features are mixed in neighbouring groups of
the largest divisor of n that is not above it: nothing is padded, so a layer keeps its shape and its bits.

Papers: QuIP# (arXiv 2402.04396), section 3; the block form is exllamav3's (width 128). Differs from both: any
dimension, constructed matrices instead of stored ones, no padding, signs packed as bits.
Cost: (N + K) / (N K) bits per weight; p additions and 2^t m (or m) multiply-adds per element.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Bits, Field
from lowbit.core.hadamard import construction, hadamard_matrix
from lowbit.core.maps import Identity, LinearMap, Product
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform
from lowbit.kernels.hadamard import mix
from lowbit.transforms.orthogonal import LARGEST_DENSE, orthogonal

Sides = Literal["both", "left", "right"]

# Mixing fewer features than this does not make weights Gaussian; asking for it is a mistake in the width.
_SMALLEST_WIDTH = 8
_SMALLEST_DENSE = 32


@dataclass(frozen=True, eq=False)
class Signs:
    """y = x * sign. sign: [d], -1 or +1."""

    sign: Tensor
    is_orthogonal = is_diagonal = True
    is_permutation = False

    def apply(self, x: Tensor) -> Tensor:
        return x * self.sign.to(x)

    def inverse(self) -> "Signs":
        return self

    def transpose(self) -> "Signs":
        return self


@dataclass(frozen=True, eq=False)
class HadamardMap:
    """y = (Sylvester(2^power) kron dense) x / 2^(power/2) for each run of 2^power * m features.

    dense: [m, m] orthogonal, float64.
    """

    power: int
    dense: Tensor
    is_orthogonal = True
    is_diagonal = is_permutation = False

    def apply(self, x: Tensor) -> Tensor:
        return mix(x, self.power, self.dense)

    def inverse(self) -> "HadamardMap":
        return HadamardMap(self.power, self.dense.T)

    def transpose(self) -> "HadamardMap":
        return self.inverse()


@dataclass(frozen=True)
class RandomizedHadamard:
    """width: features mixed together, at least 8, or "full" for all. sides: outputs ("left"), inputs, or both."""

    width: int | Literal["full"] = "full"
    sides: Sides = "both"

    def __post_init__(self) -> None:
        sized = isinstance(self.width, int) and self.width >= _SMALLEST_WIDTH
        require(
            sized or self.width == "full",
            f'RandomizedHadamard(width={self.width!r}): must be "full" or at least {_SMALLEST_WIDTH}. Use 128.',
        )
        check_sides(self, self.sides)

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform:
        drawn = {
            name: torch.randint(0, 2, field.shape, generator=rng, dtype=torch.uint8)
            for name, field in self.fields(problem.shape).items()
        }
        return self.restore(drawn, problem.shape)

    def check(self, shape: tuple[int, int]) -> None:
        for name in self.fields(shape):
            n = shape[_AXES[name]]
            if self.width == "full":
                odd = n // (n & -n)
                require(
                    _dense_order(n) is not None,
                    f"RandomizedHadamard cannot mix {n} features of a {list(shape)} layer: the odd part {odd} of {n} "
                    f'is above {LARGEST_DENSE}. Use width=128, or sides="left" or "right" to leave them out.',
                )
            else:
                width = _width(n, self.width)
                require(
                    width >= min(n, _SMALLEST_WIDTH),
                    f"RandomizedHadamard(width={self.width}): the largest divisor of the {n} features of a "
                    f'{list(shape)} layer that fits is {width}, too few to mix. Use width="full".',
                )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        wanted = {"both": _AXES, "left": ("left_signs",), "right": ("right_signs",)}[self.sides]
        return {name: Bits((shape[_AXES[name]],), 1) for name in wanted}

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        maps = {"left_signs": fitted.left, "right_signs": fitted.right}
        return {name: _sign_bits(one) for name, one in maps.items() if not isinstance(one, Identity)}

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        maps: dict[str, LinearMap] = {
            name: Product(self._mixing(shape[_AXES[name]]), Signs(1 - 2 * tensors[name].to(torch.int8)))
            for name in self.fields(shape)
        }
        return FittedTransform(maps.get("left_signs", Identity()), maps.get("right_signs", Identity()))

    def _mixing(self, n: int) -> HadamardMap:
        return _mixing(n if self.width == "full" else _width(n, self.width))


_AXES = {"left_signs": 0, "right_signs": 1}


def check_sides(part: object, sides: str) -> None:
    require(
        sides in ("both", "left", "right"),
        f'{type(part).__name__}(sides={sides!r}): must be "both", "left" (outputs) or "right" (inputs).',
    )


def _sign_bits(one: LinearMap) -> Tensor:
    assert isinstance(one, Product)
    assert isinstance(one.before, Signs)
    return (one.before.sign < 0).to(torch.uint8)


def _width(n: int, limit: int) -> int:
    """The largest divisor of n that is not above limit."""
    return max(d for d in range(1, min(n, limit) + 1) if n % d == 0)


def _dense_order(n: int) -> int | None:
    """The order of the factor beside Sylvester's, or None where n cannot be mixed.

    Small ones are doubled: a product with a matrix of order 32 costs less than the rounds of butterflies it replaces.
    """
    odd = n // (n & -n)
    orders = [odd << t for t in range((n // odd).bit_length()) if odd << t <= LARGEST_DENSE]
    hadamard = [order for order in orders if construction(order) is not None]
    large = [order for order in hadamard if order >= _SMALLEST_DENSE]
    return next(iter([*large[:1], *hadamard[-1:], *orders[:1]]), None)


@functools.lru_cache(maxsize=16)
def _mixing(n: int) -> HadamardMap:
    m = _dense_order(n)
    assert m is not None, "checked before"
    dense = orthogonal(m, m) if construction(m) is None else hadamard_matrix(m).double() / math.sqrt(m)
    return HadamardMap((n // m).bit_length() - 1, dense)
