"""Where an integer grid puts its end points: the range of each group of weights.

A range [low, high] that includes 0 gives scale s = (high - low) / (2^b - 1) and zero point z = round(-low / s);
the symmetric grid takes high = -low = max |w| and a fixed z. Shrinking the range clips a few weights and serves
the others better: `SearchedRange` tries fractions of it and keeps the best for sum |w - Q(w)|^p, `HessianRange`
for sum d_j (w_j - Q(w)_j)^2, where d is the diagonal of the factorisation H = A diag(d) A^T, which is what a column's
rounding error costs once later columns have absorbed what they can.

Papers: OPTQ repository (`--mse`: 100 steps down to 20 % of the range, p = 2.4, arXiv 2210.17323).
Differs: the Hessian weighting is ours; one candidate is always the full range, so a search never does worse by its
own measure.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import check_damping, unit_upper_factor
from lowbit.core.problem import LayerProblem

# Groups are searched this many weights at a time, to bound the memory of the candidates' errors.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Levels:
    """An integer grid's levels. bits: 1 to 8; symmetric: the zero point is fixed and not stored."""

    bits: int
    symmetric: bool
    scale_dtype: torch.dtype

    @property
    def top(self) -> int:
        return 2**self.bits - 1

    @property
    def middle(self) -> float:
        """The symmetric grid's zero point: 2^(b-1), so that 0 is a level; one bit has no such level and uses +-s/2."""
        return 0.5 if self.bits == 1 else 2.0 ** (self.bits - 1)

    def affine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, rounded to its stored type and never zero, and zero point of the ranges [low, high]."""
        tiny = torch.finfo(self.scale_dtype).smallest_normal if self.scale_dtype != torch.float16 else 2.0**-24
        scale = ((high - low) / self.top).to(self.scale_dtype).to(low.dtype).clamp_min(tiny)
        if self.symmetric:
            return scale, torch.full_like(scale, self.middle)
        return scale, (-low / scale).round().clamp(0, self.top)

    def extent(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The full range, low and high [R], of groups [R, g]."""
        if self.symmetric:
            largest = groups.abs().amax(-1)
            return -largest, largest
        return groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)

    def nearest(self, w: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The storable values nearest to w."""
        return scale * (_codes(w, scale, zero, self.top) - zero)


def _codes(w: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    # A half-integer zero point (one symmetric bit) shifts the rounding, an integer one does not.
    offset = zero.frac()
    return ((w / scale + offset).round() + (zero - offset)).clamp(0, top)


class Ranged(Protocol):
    """Levels that a range can be fitted to: an integer grid's, or those of a table."""

    def extent(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The full range, low and high [R], of groups [R, g]."""
        ...

    def affine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, as it is stored, and zero point of the ranges [low, high]."""
        ...

    def nearest(self, w: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The storable values nearest to w."""
        ...


@runtime_checkable
class Range(Protocol):
    def importance(self, problem: LayerProblem) -> Tensor | None:
        """What an error in each column costs, [K], or None for all the same."""
        ...

    def fit(self, groups: Tensor, importance: Tensor | None, levels: Ranged) -> tuple[Tensor, Tensor]:
        """Scale and zero point [R] of groups [R, g]; importance: [R, g] or broadcastable."""
        ...


@dataclass(frozen=True)
class MinMax:
    """From the smallest to the largest weight of the group."""

    def importance(self, problem: LayerProblem) -> Tensor | None:
        return None

    def fit(self, groups: Tensor, importance: Tensor | None, levels: Ranged) -> tuple[Tensor, Tensor]:
        return levels.affine(*levels.extent(groups))


@dataclass(frozen=True)
class SearchedRange:
    """The fraction of the range with the least sum |w - Q(w)|^exponent.

    smallest: in (0, 1], the smallest fraction tried; steps: >= 1, how many; exponent: > 0.
    """

    smallest: float = 0.2
    steps: int = 80
    exponent: float = 2.4

    def __post_init__(self) -> None:
        _check_search(self, self.smallest, self.steps)
        require(self.exponent > 0, f"SearchedRange(exponent={self.exponent}): must be above 0. Use 2.4.")

    def importance(self, problem: LayerProblem) -> Tensor | None:
        return None

    def fit(self, groups: Tensor, importance: Tensor | None, levels: Ranged) -> tuple[Tensor, Tensor]:
        return _searched(groups, None, levels, (self.smallest, self.steps, self.exponent))


@dataclass(frozen=True)
class HessianRange:
    """The fraction of the range with the least sum d_j (w_j - Q(w)_j)^2.

    smallest, steps: as in SearchedRange; damping: as in Ldlq.
    """

    smallest: float = 0.2
    steps: int = 80
    damping: float = 0.01

    def __post_init__(self) -> None:
        _check_search(self, self.smallest, self.steps)
        check_damping(self, self.damping)

    def importance(self, problem: LayerProblem) -> Tensor | None:
        return unit_upper_factor(problem.hessian, self.damping).diagonal.to(problem.weight.dtype)

    def fit(self, groups: Tensor, importance: Tensor | None, levels: Ranged) -> tuple[Tensor, Tensor]:
        return _searched(groups, importance, levels, (self.smallest, self.steps, 2.0))


def _check_search(search: object, smallest: float, steps: int) -> None:
    name = type(search).__name__
    require(0 < smallest <= 1, f"{name}(smallest={smallest}): must be in (0, 1]. Use 0.2.")
    require(steps >= 1, f"{name}(steps={steps}): must be at least 1. Use 80.")


def _searched(
    groups: Tensor, importance: Tensor | None, levels: Ranged, search: tuple[float, int, float]
) -> tuple[Tensor, Tensor]:
    smallest, steps, exponent = search
    fractions = torch.linspace(1.0, smallest, steps, dtype=groups.dtype)
    rows = max(1, _CHUNK // groups.shape[-1])
    best_scale, best_zero = [], []
    for start in range(0, len(groups), rows):
        chunk = groups[start : start + rows]
        weights = None if importance is None else importance.expand_as(groups)[start : start + rows]
        low, high = levels.extent(chunk)
        scale, zero = levels.affine(low, high)
        least = torch.full_like(scale, torch.inf)
        for fraction in fractions:
            s, z = levels.affine(fraction * low, fraction * high)
            error = (levels.nearest(chunk, s[:, None], z[:, None]) - chunk).abs_().pow_(exponent)
            cost = (error if weights is None else error * weights).sum(-1)
            better = cost < least
            scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
            least = torch.minimum(cost, least)
        best_scale.append(scale)
        best_zero.append(zero)
    return torch.cat(best_scale), torch.cat(best_zero)
