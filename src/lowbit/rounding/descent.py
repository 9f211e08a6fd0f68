"""Coordinate descent: encode each tile of columns again, now that the others are known.

With all other columns held, the loss in the columns b of a tile is a parabola whose bottom is

    target = W_hat_b + (W - W_hat) H_{:,b} H_bb^-1

LDLQ's targets know the columns before a tile; these know those after it too. The new codes of a tile are taken where
they lower the loss, which is judged exactly and not by the code's own distance: no pass makes it worse. Tiles of
several rows that do not divide the outputs are taken or left together.

With a row Hessian G the pull on rows r is G_r: (W - W_hat) H, and a pass goes through rows that G couples one after
the other (`lowbit.rounding.rows`), all columns of each.

Cost: a pass is N K^2 multiply-adds and one encoding of the layer, with a row Hessian one encoding a wave.
Papers: QuIP (arXiv 2307.13304), greedy updates; QuIP# (arXiv 2402.04396), ten passes after block LDLQ; QuantEase (arXiv
2309.01885), the closed form. Differs from their code: any tile, and steps that the code's distance favours but the loss
does not are left out.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.parts import Code, Rounder
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded, Side
from lowbit.rounding.rows import Wave, coupled_waves
from lowbit.rounding.sweep import sweep, tile_inverses

# A gain smaller than this part of the loss of a tile's rows is rounding noise.
_LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class CoordinateDescent:
    """start: the rounder whose answer is improved. passes: >= 1 over all columns, fewer where one changes nothing.

    Codes that fit scales to groups of columns (refit_every) keep those that `start` fitted.
    """

    start: Rounder
    passes: int = 1

    def __post_init__(self) -> None:
        require(self.passes >= 1, f"CoordinateDescent(passes={self.passes}): must be at least 1.")

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        rounded = self.start.round(problem, code)
        descent = _Descent(problem, code, rounded.side, rounded.codes.clone(), rounded.w_hat.clone())
        for _ in range(self.passes):
            changed = [descent.improve(wave) for wave in descent.waves]
            if not any(changed):
                break
        return replace(rounded, codes=descent.codes, w_hat=descent.w_hat)


@dataclass(frozen=True, eq=False)
class _Descent:
    """codes and w_hat are written into."""

    problem: LayerProblem
    code: Code
    side: Side
    codes: Tensor
    w_hat: Tensor

    @cached_property
    def hessian(self) -> Tensor:
        return self.problem.hessian.to(self.problem.weight.dtype)

    @cached_property
    def inverses(self) -> list[Tensor]:
        return tile_inverses(self.hessian, self.code.tile[1])

    @cached_property
    def waves(self) -> list[Wave]:
        return coupled_waves(self.problem, self.code)

    def improve(self, wave: Wave) -> bool:
        """One pass over the columns of a wave's rows; whether any tile changed."""
        changed = False

        def move(number: int, at: slice, pull: Tensor) -> Tensor:
            nonlocal changed
            step, better = self._step(wave, number, at, pull)
            changed = changed or better
            return step

        left = wave.pull(self.problem.weight - self.w_hat)
        sweep(left, self.hessian, self.code.tile[1], move)
        return changed

    def _step(self, wave: Wave, number: int, at: slice, pull: Tensor) -> tuple[Tensor, bool]:
        """Encode a tile anew where that pays: what the rows' pull loses by it, and whether any did."""
        target, own = self.w_hat[:, at].clone(), self.hessian[at, at]
        target[wave.rows] += wave.unweighed(pull) @ self.inverses[number]
        tried, values = self.code.encode(target, self.side, torch.arange(at.start, at.stop))
        values = values[wave.rows]
        step = values - self.w_hat[wave.rows, at]
        gain = (step * (2 * pull - wave.weighed(step) @ own)).sum(1)
        size = (values * (wave.weighed(values) @ own)).sum(1)
        better = wave.by_tile(gain - _LEAST_GAIN * size) > 0
        rows = better.repeat_interleave(wave.height)
        # Tiles of another height than the code's own, all rows in one wave, are taken together.
        tiles = wave.tiles[better] if wave.height == self.code.tile[0] else torch.arange(len(self.codes) * int(better))
        self.w_hat[wave.rows[rows], at] = values[rows]
        self.codes[tiles, number] = tried[tiles, 0]
        return wave.weighed(torch.where(rows[:, None], step, 0)), bool(better.any())
