"""Coordinate descent: encode each tile of columns again, now that the others are known.

With all other columns held, the loss in the columns b of a tile is a parabola whose bottom is

    target = W_hat_b + (W - W_hat) H_{:,b} H_bb^-1

LDLQ's targets know the columns before a tile; these know those after it too. The new codes of a tile are taken where
they lower the loss, which is judged exactly and not by the code's own distance: no pass makes it worse. Tiles of
several rows that do not divide the outputs are taken or left together.

Cost: a pass is N K^2 multiply-adds and one encoding of the layer.
Papers: QuIP (arXiv 2307.13304), greedy updates; QuIP# (arXiv 2402.04396), ten passes after block LDLQ. Differs from
their code: any tile, and steps that the code's distance favours but the loss does not are left out.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.parts import Code, Rounder
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded

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
        W, H = problem.weight, problem.hessian.to(problem.weight.dtype)
        codes, w_hat = rounded.codes.clone(), rounded.w_hat.clone()
        for _ in range(self.passes):
            if not self._improve(W, H, code, rounded, codes, w_hat):
                break
        # No step raises the loss of any row; what rows cost each other is not looked at.
        kept = rounded.guarantee if problem.row_hessian is None else None
        return replace(rounded, codes=codes, w_hat=w_hat, guarantee=kept)

    def _improve(self, W: Tensor, H: Tensor, code: Code, start: Rounded, codes: Tensor, w_hat: Tensor) -> bool:
        """One pass, writing into codes and w_hat; whether any tile changed."""
        changed, width = False, code.tile[1]
        height, ragged = code.tile[0], len(W) % code.tile[0] != 0
        owner = torch.zeros(len(W), dtype=torch.int64) if ragged else torch.arange(len(W)) // height
        for index, begin in enumerate(range(0, W.shape[1], width)):
            columns = torch.arange(begin, min(begin + width, W.shape[1]))
            own = H[columns[:, None], columns]
            pull = (W - w_hat) @ H[:, columns]
            target = w_hat[:, columns] + pull @ torch.linalg.pinv(own, hermitian=True)
            tried, values = code.encode(target, start.side, columns)
            step = values - w_hat[:, columns]
            gain = (step * (2 * pull - step @ own)).sum(1)
            size = (values * (values @ own)).sum(1)
            gains = torch.zeros(codes.shape[0], dtype=W.dtype).index_add_(0, owner, gain - _LEAST_GAIN * size)
            better = gains > 0
            w_hat[:, columns] = torch.where(better[owner, None], values, w_hat[:, columns])
            taken = better[:1].expand_as(better) if ragged else better
            codes[taken, index] = tried[taken, 0]
            changed = changed or bool(taken.any())
        return changed
