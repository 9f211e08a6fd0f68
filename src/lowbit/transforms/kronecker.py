"""Random orthogonal Kronecker product: QuIP's incoherence, for any dimension that has two factors.

    W' = U W V^T,    H' = V H V^T,    U and V each (P kron Q) after a random permutation

P [p, p] and Q [q, q] are uniformly distributed orthogonal matrices, p q the dimension and p, q as near to its square
root as its divisors allow, so that applying the product costs p + q multiply-adds per element, not p q.

Paper: QuIP (arXiv 2307.13304), algorithm 1 and section 4.2. Differs from the authors' code: the matrices follow from
one stored number (theirs are never stored, so no checkpoint can be read back); factors are true divisors, balanced,
where theirs alternate primes; a prime dimension is mixed by one full matrix up to 2048 and refused beyond.
Cost: 64 / (N K) bits per weight.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Array, Field
from lowbit.core.maps import Permutation, Product
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform
from lowbit.transforms.orthogonal import LARGEST_DENSE, orthogonal, permutation


@dataclass(frozen=True, eq=False)
class KroneckerMap:
    """y = (outer kron inner) x. outer: [p, p] and inner: [q, q], orthogonal, float64; x: [..., p q]."""

    outer: Tensor
    inner: Tensor
    is_orthogonal = True
    is_diagonal = is_permutation = False

    def apply(self, x: Tensor) -> Tensor:
        grid = x.reshape(-1, len(self.outer), len(self.inner))
        return (self.outer.to(x) @ (grid @ self.inner.T.to(x))).view(x.shape)

    def inverse(self) -> "KroneckerMap":
        return KroneckerMap(self.outer.T, self.inner.T)

    def transpose(self) -> "KroneckerMap":
        return self.inverse()


@dataclass(frozen=True, eq=False)
class SeededRotation(Product):
    """A Kronecker map after a permutation, with the seed that both follow from."""

    seed: int


@dataclass(frozen=True)
class RandomKronecker:
    """Rotates outputs and inputs. Stores one number per layer."""

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform:
        seed = torch.randint(0, 2**32, (1,), generator=rng, dtype=torch.int64)
        return self.restore({"rotation_seed": seed}, problem.shape)

    def check(self, shape: tuple[int, int]) -> None:
        for n in shape:
            p, q = _factors(n)
            require(
                q <= LARGEST_DENSE,
                f"RandomKronecker cannot mix {n} features of a {list(shape)} layer: its nearest factors are {p} and "
                f"{q}, above {LARGEST_DENSE}. Use RandomizedHadamard(width=128).",
            )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {"rotation_seed": Array((1,), torch.int64)}

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        assert isinstance(fitted.left, SeededRotation)
        return {"rotation_seed": torch.tensor([fitted.left.seed])}

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        seed = int(tensors["rotation_seed"])
        require(0 <= seed < 2**32, f"RandomKronecker: the stored seed {seed} is not a number from 0 to 2^32 - 1.")
        left, right = (_rotation(n, seed, side) for side, n in enumerate(shape))
        return FittedTransform(left, right)


def _rotation(n: int, seed: int, side: int) -> SeededRotation:
    p, q = _factors(n)
    kronecker = KroneckerMap(orthogonal(p, seed, side, 0), orthogonal(q, seed, side, 1))
    return SeededRotation(kronecker, Permutation(permutation(n, seed, side, 2)), seed)


def _factors(n: int) -> tuple[int, int]:
    """p <= q with p q = n, as near to each other as divisors allow."""
    p = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    return p, n // p
