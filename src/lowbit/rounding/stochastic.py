"""Unbiased rounding: each weight goes to one of the two levels around its aim, to the nearer one more often.

    Q(t) = low + (high - low) [u < (t - low) / (high - low)],    u uniform,    E Q(t) = t

Whoever rounds gets the same code with this in the place of nearest, so stochastic OPTQ and LDLQ, GPFQ, and plain
stochastic rounding are one wrapper. Then E W_hat = W while nothing is clamped, the largest error of any output is
bounded with high probability, and the mean squared error is twice that of nearest: a step squared over 6, not 12.

The random numbers of a column depend on the seed and the column alone, so they are the same for every rounder and slab.
Codes whose tiles or levels are not of single weights are refused.

Cost: that of the rounder, column by column, and 2^bits values looked at for each weight.
Papers: OPTQ's stochastic variant in arXiv 2508.04853; QuIP (arXiv 2307.13304), section 3 (`Q` stochastic).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.cells import half_widths
from lowbit.core.errors import require
from lowbit.core.fields import Field
from lowbit.core.levels import levels, require_levels
from lowbit.core.parts import Code, Rounder
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.core.records import Rounded, Side


@dataclass(frozen=True)
class Stochastic:
    """rounder: rounds with the unbiased code; searches among levels (Beam) are refused. seed: >= 0."""

    rounder: Rounder
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"Stochastic(seed={self.seed}): must be at least 0.")

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        require_levels(self, code, problem.shape, f"Use {type(self.rounder).__name__} alone.")
        return self.rounder.round(problem, _Unbiased(code, problem.shape, self.seed))


@dataclass(frozen=True)
class _Unbiased:
    """`code` that rounds at random. Its codes have no declared levels, for none is the nearest."""

    code: Code
    shape: tuple[int, int]
    seed: int

    tile = (1, 1)

    @property
    def refit_every(self) -> int:
        return self.code.refit_every

    def check(self, shape: tuple[int, int]) -> None:
        self.code.check(shape)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {name: field for name, field in self.code.fields(shape).items() if name != "codes"}

    def fit(self, problem: LayerProblem) -> Side:
        return self.code.fit(problem)

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return self.code.refit(side, target, columns)

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode_with_feedback(target, target, target.new_zeros(2 * (len(columns),)), side, columns)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        known, wanted = levels(self.code, side, columns, self.shape), target.clone()
        ranks = torch.empty(*target.shape, 1, dtype=torch.int64)
        for j, column in enumerate(columns.tolist()):
            ranks[:, j] = self._choose(wanted[:, j : j + 1], known.values[:, j], column)
            error = weight[:, j : j + 1] - known.values[:, j].gather(1, ranks[:, j])
            wanted[:, j + 1 :] += error * feedback[j, j + 1 :]
        return known.codes.gather(2, ranks)[:, :, 0], known.values.gather(2, ranks)[:, :, 0]

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        return self.code.decode(codes, side, columns)

    def half_widths(self, side: Side, columns: Tensor) -> Tensor | None:
        """Whole steps: that far is the other level around an aim."""
        cells = half_widths(self.code, side, columns)
        return None if cells is None else 2 * cells

    def _choose(self, target: Tensor, values: Tensor, column: int) -> Tensor:
        """The rank [N, 1] of the level that each target [N, 1] goes to; values: [N, L], ascending."""
        top = values.shape[1] - 1
        low = ((values <= target).sum(1, keepdim=True) - 1).clamp_min(0)
        high = (low + 1).clamp_max(top)
        below, above = values.gather(1, low), values.gather(1, high)
        share = ((target - below) / (above - below)).nan_to_num(0.0, 0.0, 0.0)
        uniform = torch.rand(
            len(target), 1, generator=stream(self.seed, "stochastic", str(column)), dtype=torch.float64
        )
        return torch.where(uniform < share, high, low)
