"""LDLQ: round each tile of columns at the target that cancels what the columns before it left behind.

With H + damping = A diag(d) A^T, A unit upper triangular, the loss is sum_j d_j |(E A)_j|^2 for E = W_hat - W, so
column j should aim at

    W_j + sum over i < j of (W_i - W_hat_i) A_ij

Where j counts tiles of several columns, A is taken unit upper triangular in tiles, A_jj = I (QuIP#, arXiv 2402.04396,
block LDLQ): the same matrix with each tile's columns multiplied by its own A_jj^-1.

A group's side information is re-estimated, where the code asks for it, from the real weights that would be best for
the whole group given the columns before it, W_g + (E A)_g A_gg^-1, which is what OPTQ's updated weights hold then.

Columns are handled in slabs: one product brings the errors of all earlier columns into a slab, the code's own kernel
feeds errors between its tiles. The same codes come out for every slab width. OPTQ, with its factor of the inverse, is
this algorithm (QuIP, theorem 6), and so is Babai's nearest plane.

Cost: K^3 / 3 (factor) + N K^2 / 2 multiply-adds; memory 2 N K + 2 K^2.
Papers: QuIP (arXiv 2307.13304), sections 3.1 and 3.2; OPTQ (arXiv 2210.17323), lazy batches. Differs from OPTQ's
repository: one factorisation in float64 instead of three in float32, order is a transform, dead inputs keep weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import check_damping, unit_upper_factor
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded
from lowbit.rounding.bounds import feedback_guarantee


@dataclass(frozen=True)
class Ldlq:
    """damping: 0 to 1000, a fraction of the mean diagonal of H. slab: >= 1 columns a step; changes speed only."""

    damping: float = 0.01
    slab: int = 128

    def __post_init__(self) -> None:
        check_damping(self, self.damping)
        require(self.slab >= 1, f"Ldlq(slab={self.slab}): must be at least 1. Use 128.")

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        W, factor = problem.weight, unit_upper_factor(problem.hessian, self.damping)
        A = _unit_tiles(factor.unit_upper, code.tile[1]).to(W.dtype)
        side, codes = code.fit(problem), []
        w_hat, error = torch.empty_like(W), torch.zeros_like(W)
        for group in _spans(0, W.shape[1], code.refit_every or W.shape[1]):
            if code.refit_every:
                pull = error[:, : group.start] @ A[: group.start, group]
                best = W[:, group] + torch.linalg.solve_triangular(A[group, group], pull, upper=True, left=False)
                side = code.refit(side, best, torch.arange(group.start, group.stop))
            for slab in _spans(group.start, group.stop, _whole_tiles(self.slab, code.tile[1])):
                columns = torch.arange(slab.start, slab.stop)
                target = W[:, slab] + error[:, : slab.start] @ A[: slab.start, slab]
                q, w_hat[:, slab] = code.encode_with_feedback(W[:, slab], target, A[slab, slab], side, columns)
                error[:, slab] = W[:, slab] - w_hat[:, slab]
                codes.append(q)
        rounded = Rounded(torch.cat(codes, 1), side, w_hat, factor.outcomes)
        return replace(rounded, guarantee=feedback_guarantee(problem, rounded, code, factor))


def _unit_tiles(unit_upper: Tensor, width: int) -> Tensor:
    """A with identities as its diagonal tiles: the same quadratic form, each tile with a joint cost."""
    if width == 1:
        return unit_upper
    result = torch.empty_like(unit_upper)
    for tile in _spans(0, len(unit_upper), width):
        own = unit_upper[tile, tile]
        result[:, tile] = torch.linalg.solve_triangular(own, unit_upper[:, tile], upper=True, left=False)
    return result


def _spans(start: int, stop: int, width: int) -> Iterator[slice]:
    return (slice(at, min(at + width, stop)) for at in range(start, stop, width))


def _whole_tiles(width: int, tile: int) -> int:
    return max(tile, width // tile * tile)
