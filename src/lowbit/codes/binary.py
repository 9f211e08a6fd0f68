"""Binary coding: a level is a sum of numbers, each taken or not as one bit of the code says.

    level = offset + sum_i a_i b_i,    b_i the bits of the code

    digits "zero one"   b in {0, 1}, no offset: a zero is always there and skips work (DB-LLM, two planes)
    digits "signs"      b in {-1, 1} and an offset: what table kernels evaluate plane by plane (GPTQT)

k + 1 numbers a group, or k, shape 2^k levels: more freedom than a scale, less than a free table. `fitting` says how
they are found:

    LeastSquares   from a uniform grid; codes and numbers take turns, the best turn is kept
    TwoStep        from a finer integer grid of `fine_bits` bits: of all sets of 2^k of its levels that are sums of k
                   whole steps, each group takes one, and a step, by cost. Levels stay near the grid and do not follow
                   single weights, which feedback is going to move.

Bits per weight: k + 16 k / g ("zero one") or k + 16 (k + 1) / g; g the group size or K.
Papers: DB-LLM (arXiv 2402.11960), GPTQT (2407.02891). Differs from DB-LLM: closed-form numbers, nothing is trained; the
sign of the start follows the group's longer side. From GPTQT (no code is public): the `shortlist` of step sets is
chosen for the layer on a sample of it, then each group chooses among those.
Cost: LeastSquares a few encodings of the layer; TwoStep shortlist x steps of them.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lowbit.codes.importance import Importance, Weighed, check_importance
from lowbit.codes.linear import best_theta, costs_of, given
from lowbit.codes.lookup import as_float16, replaced, working
from lowbit.core.errors import require
from lowbit.core.fields import Array, Field
from lowbit.core.records import Side

Digits = Literal["zero one", "signs"]

# Weights that step sets are compared on, and the fractions of the full range that are tried for each.
_SAMPLE = 1 << 14
_COARSE = (1.0, 0.8, 0.65, 0.5)
_SMALLEST_FRACTION = 0.4


@runtime_checkable
class PlaneFitting(Protocol):
    """How the numbers of binary codings are found."""

    def fit(self, groups: Tensor, costs: Tensor, patterns: Tensor) -> Tensor:
        """The numbers [R, G, p] of groups [R, G, g]; costs alike, positive; patterns: [2^planes, p]."""
        ...


@dataclass(frozen=True)
class LeastSquares:
    """turns: of codes and numbers, at least 1; 0 keeps the uniform grid."""

    turns: int = 10

    def __post_init__(self) -> None:
        require(self.turns >= 0, f"LeastSquares(turns={self.turns}): must be at least 0. Use 10.")

    def fit(self, groups: Tensor, costs: Tensor, patterns: Tensor) -> Tensor:
        theta = best = _uniform(groups, patterns)
        codes, least = costs_of(groups, costs, _tables(theta, patterns))
        for _ in range(self.turns):
            theta = best_theta(*given(groups, costs, codes, len(patterns)), patterns, theta).half().to(theta)
            codes, tried = costs_of(groups, costs, _tables(theta, patterns))
            better = tried < least
            best, least = torch.where(better[..., None], theta, best), torch.minimum(tried, least)
        return best


@dataclass(frozen=True)
class TwoStep:
    """fine_bits: of the first grid, up to 6 and at least as many as planes. shortlist: step sets kept for the layer.

    steps: ranges tried for each, from the full one down to 0.4 of it.
    """

    fine_bits: int = 5
    shortlist: int = 8
    steps: int = 16

    def __post_init__(self) -> None:
        require(1 <= self.fine_bits <= 6, f"TwoStep(fine_bits={self.fine_bits}): must be 1 to 6. Use 5.")
        require(self.shortlist >= 1, f"TwoStep(shortlist={self.shortlist}): must be at least 1. Use 8.")
        require(self.steps >= 1, f"TwoStep(steps={self.steps}): must be at least 1. Use 16.")

    def fit(self, groups: Tensor, costs: Tensor, patterns: Tensor) -> Tensor:
        planes = len(patterns).bit_length() - 1
        require(
            planes <= self.fine_bits and patterns.shape[1] == planes + 1,
            f'TwoStep(fine_bits={self.fine_bits}): needs digits "signs" and at least as many fine bits as planes.',
        )
        sets = torch.tensor(step_sets(planes, self.fine_bits), dtype=groups.dtype)
        fractions = torch.linspace(1.0, _SMALLEST_FRACTION, self.steps).tolist() if self.steps > 1 else [1.0]
        sample = groups[:, :, :].flatten(0, 1)[:: -(-groups.numel() // _SAMPLE)][:, None]
        weights = costs.flatten(0, 1)[:: -(-groups.numel() // _SAMPLE)][:, None]
        scores = [self._best(sample, weights, patterns, one[None], _COARSE)[1].sum() for one in sets]
        chosen = torch.stack(scores).argsort(stable=True)[: self.shortlist]
        chosen = torch.cat((chosen[chosen != len(sets) - 1], torch.tensor([len(sets) - 1])))
        return self._best(groups, costs, patterns, sets[chosen], fractions)[0]

    def _best(
        self, groups: Tensor, costs: Tensor, patterns: Tensor, sets: Tensor, fractions: tuple[float, ...] | list[float]
    ) -> tuple[Tensor, Tensor]:
        """The cheapest numbers [R, G, p] among step sets [S, planes] and ranges, and their cost [R, G]."""
        low, high = _extent(groups)
        best, least = None, None
        for steps, fraction in itertools.product(sets, fractions):
            middle, half = (high + low) / 2, fraction * (high - low) / 2
            theta = torch.cat((half[..., None] * steps / steps.sum(), middle[..., None]), -1).half().to(groups)
            tried = costs_of(groups, costs, _tables(theta, patterns))[1]
            if best is None or least is None:
                best, least = theta, tried
            best = torch.where((tried < least)[..., None], theta, best)
            least = torch.minimum(tried, least)
        assert best is not None
        assert least is not None
        return best, least


@functools.cache
def step_sets(planes: int, fine_bits: int) -> tuple[tuple[int, ...], ...]:
    """The ascending whole steps d_1 <= ... <= d_planes with 2^planes different sums that span a grid of so many bits.

    Their sums, from any offset, are levels of the grid. The uniform grid's 1 2 4 .. comes last.
    """
    top = 2**fine_bits - 1
    found = []
    for steps in itertools.combinations_with_replacement(range(1, top + 1), planes):
        sums = {sum(taken) for taken in itertools.product(*[(0, step) for step in steps])}
        if sum(steps) <= top and len(sums) == 2**planes:
            found.append(steps)
    uniform = tuple(2**i for i in range(planes))
    return (*(steps for steps in found if steps != uniform), uniform)


@dataclass(frozen=True)
class BinaryCoding(Weighed):
    """planes: 1 to 6 bits a weight. digits, fitting: see above; importance: what an error in each column costs."""

    planes: int = 2
    digits: Digits = "zero one"
    fitting: PlaneFitting = LeastSquares()
    importance: Importance = "none"

    linear_in = ("planes",)

    def __post_init__(self) -> None:
        require(1 <= self.planes <= 6, f"BinaryCoding(planes={self.planes!r}): must be 1 to 6.")
        require(
            self.digits in ("zero one", "signs"),
            f'BinaryCoding(digits={self.digits!r}): must be "zero one" or "signs".',
        )
        check_importance(self, self.importance)

    @property
    def bits(self) -> int:
        return self.planes

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        return {"planes": Array((rows, groups, patterns(self.planes, self.digits).shape[1]), torch.float16)}

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        costs = torch.ones_like(groups) if importance is None else importance
        return {"planes": as_float16(self, self.fitting.fit(groups, costs, self._patterns(groups)))}

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        return replaced(side, self.fit(groups, importance), at)

    def of(self, side: Side, at: Tensor) -> Tensor:
        theta = working(side["planes"])[:, at]
        return _tables(theta, self._patterns(theta))

    def _patterns(self, like: Tensor) -> Tensor:
        return patterns(self.planes, self.digits).to(like.dtype)


@functools.cache
def patterns(planes: int, digits: Digits) -> Tensor:
    """What each code takes of the numbers, [2^planes, p] float64; with signs the last number is the offset."""
    bits = (torch.arange(2**planes)[:, None] >> torch.arange(planes) & 1).double()
    return bits if digits == "zero one" else torch.cat((2 * bits - 1, torch.ones(2**planes, 1).double()), 1)


def _tables(theta: Tensor, patterns: Tensor) -> Tensor:
    """Levels [R, G, 2^planes], summed in one order whatever the shape, so that they are the same bit for bit."""
    levels = theta[..., :1] * patterns[:, 0]
    for i in range(1, patterns.shape[1]):
        levels = levels + theta[..., i : i + 1] * patterns[:, i]
    return levels


def _uniform(groups: Tensor, patterns: Tensor) -> Tensor:
    """The numbers of the uniform grid over each group's range, as float16."""
    planes = len(patterns).bit_length() - 1
    powers = 2.0 ** torch.arange(planes, dtype=groups.dtype)
    low, high = _extent(groups)
    if patterns.shape[1] > planes:
        half = (high - low)[..., None] / 2 * powers / powers.sum()
        return torch.cat((half, (high + low)[..., None] / 2), -1).half().to(groups)
    # Two's complement, turned so that its longer side, one step longer, is the group's: -1 0 1 2 of two planes.
    powers[-1] *= -1
    top, bottom = max(1.0, 2.0 ** (planes - 1) - 1), 2.0 ** (planes - 1)
    step = torch.maximum(torch.maximum(high, -low) / bottom, torch.minimum(high, -low) / top)
    return (torch.where(high >= -low, -step, step)[..., None] * powers).half().to(groups)


def _extent(groups: Tensor) -> tuple[Tensor, Tensor]:
    return groups.amin(-1), groups.amax(-1)
