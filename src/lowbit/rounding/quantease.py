"""QuantEase: coordinate descent from the weight itself, with sweeps that leave the grid to escape local minima.

    W_hat_j <- Q(beta_j),    beta_j = W_hat_j + (W - W_hat) H_j / H_jj

for every column in turn, `sweeps` times; in every third sweep Q is left out and beta_j taken as it is. Sweeps that do
so are not monotone, and neither is the first, from W: each row keeps the best answer that it has met on the grid.
`CoordinateDescent` is the same step without relaxation, never worse than what it starts from.

Cost: a sweep is N K^2 multiply-adds and one encoding of the layer; no factorisation.
Paper: Behdin et al., QuantEase (arXiv 2309.01885), algorithm 2. Differs from its code: tiles of columns; the last
sweeps need no rule of their own, for every relaxed one is followed by one on the grid; inputs that never fire are
rounded to nearest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import checked_second_moment
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded, Side
from lowbit.rounding.rows import rows_apart, tile_height
from lowbit.rounding.sweep import sweep, tile_inverses

_RELAXED_EVERY = 3


@dataclass(frozen=True)
class QuantEase:
    """sweeps: >= 1, every third of them off the grid, but not the last.

    Codes that fit scales to groups of columns (refit_every) keep those of the weight.
    """

    sweeps: int = 30

    def __post_init__(self) -> None:
        require(self.sweeps >= 1, f"QuantEase(sweeps={self.sweeps}): must be at least 1. Use 30.")

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        outcomes = (*checked_second_moment(problem.hessian), *rows_apart(self, problem))
        run = _Run(problem, code, code.fit(problem))
        for number in range(self.sweeps):
            if number % _RELAXED_EVERY == 1 and number + 1 < self.sweeps:
                run.relax()
            else:
                run.encode()
        return Rounded(run.best_codes, run.side, run.best, outcomes)


class _Run:
    """w_hat: [N, K], where it stands. best, best_codes: of each tile of rows, the least loss met on the grid."""

    def __init__(self, problem: LayerProblem, code: Code, side: Side) -> None:
        self.W, self.H, self.code, self.side = problem.weight, problem.hessian.to(problem.weight.dtype), code, side
        self.inverses = tile_inverses(self.H, code.tile[1])
        self.height = tile_height(code, len(self.W))
        self.w_hat, self.best, self.best_codes = self.W.clone(), self.W, torch.empty(0)
        self.least = torch.full((len(self.W) // self.height,), torch.inf, dtype=torch.float64)

    def relax(self) -> None:
        """A sweep that takes each column to the bottom of its parabola."""
        sweep(self.W - self.w_hat, self.H, self.code.tile[1], lambda *at: self._move(at[1], self._bottom(*at)))

    def encode(self) -> None:
        """A sweep that takes it to the storable values nearest to that."""
        codes = []

        def move(number: int, at: slice, pull: Tensor) -> Tensor:
            target = self._bottom(number, at, pull)
            q, values = self.code.encode(target, self.side, torch.arange(at.start, at.stop))
            codes.append(q)
            return self._move(at, values)

        sweep(self.W - self.w_hat, self.H, self.code.tile[1], move)
        self._keep(torch.cat(codes, 1))

    def _bottom(self, number: int, at: slice, pull: Tensor) -> Tensor:
        return self.w_hat[:, at] + pull @ self.inverses[number]

    def _move(self, at: slice, values: Tensor) -> Tensor:
        step = values - self.w_hat[:, at]
        self.w_hat[:, at] = values
        return step

    def _keep(self, codes: Tensor) -> None:
        error = self.W - self.w_hat
        losses = ((error @ self.H) * error).double().view(len(self.least), -1).sum(1)
        better = losses < self.least
        rows = better.repeat_interleave(self.height)[:, None]
        tiles = better.repeat_interleave(len(codes) // len(better)).view(-1, *[1] * (codes.dim() - 1))
        first = self.best_codes.numel() == 0
        self.best_codes = codes if first else torch.where(tiles, codes, self.best_codes)
        self.best = torch.where(rows, self.w_hat, self.best)
        self.least = torch.minimum(losses, self.least)
