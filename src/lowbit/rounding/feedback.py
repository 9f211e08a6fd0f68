"""Rounding with linear feedback, the loop that LDLQ and its relatives share.

With F [K, K] unit upper triangular, column j aims at

    W_j + sum over i < j of (W_i - W_hat_i) F_ij

Where j counts tiles of several columns, F is taken unit upper triangular in tiles, F_jj = I: the same matrix with each
tile's columns multiplied by its own F_jj^-1. A code that feeds errors between the columns inside its tiles counts as
having tiles as narrow as what it encodes at once.

A group's side information is re-estimated, where the code asks for it, from the real weights that would meet every aim
of the group given the columns before it, W_g + (E F)_g F_gg^-1, which is what OPTQ's updated weights hold then.

Columns are handled in slabs: one product brings the errors of all earlier columns into a slab, the code's own kernel
feeds errors between its tiles. The same codes come out for every slab width. Cost: N K^2 / 2 multiply-adds.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lowbit.core.parts import Code, joint_columns
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded, Side

Encode = Callable[[Tensor, Tensor, Tensor, Side, Tensor], tuple[Tensor, Tensor]]
"""`Code.encode_with_feedback`, or what stands in for it."""


def round_with_feedback(
    problem: LayerProblem, code: Code, unit_upper: Tensor, slab: int, encode: Encode | None = None
) -> Rounded:
    """Round W along `unit_upper` [K, K], `slab` columns at a time; slabs are encoded by `encode`, the code's own if
    None."""
    W, width = problem.weight, joint_columns(code)
    side, codes, encode = code.fit(problem), [], encode or code.encode_with_feedback
    w_hat, error = torch.empty_like(W), torch.zeros_like(W)
    for group in spans(0, W.shape[1], code.refit_every or W.shape[1]):
        if code.refit_every:
            F = unit_tiles(unit_upper, width, group).to(W.dtype)
            pull = error[:, : group.start] @ F[: group.start]
            best = W[:, group] + torch.linalg.solve_triangular(F[group.start :], pull, upper=True, left=False)
            side = code.refit(side, best, torch.arange(group.start, group.stop))
        for step in spans(group.start, group.stop, whole_tiles(slab, code.tile[1])):
            columns = torch.arange(step.start, step.stop)
            F = unit_tiles(unit_upper, width, step).to(W.dtype)
            target = W[:, step] + error[:, : step.start] @ F[: step.start]
            q, w_hat[:, step] = encode(W[:, step], target, F[step.start :], side, columns)
            error[:, step] = W[:, step] - w_hat[:, step]
            codes.append(q)
    return Rounded(torch.cat(codes, 1), side, w_hat)


def unit_tiles(unit_upper: Tensor, width: int, span: slice) -> Tensor:
    """F with identities as its diagonal tiles: the same quadratic form, each tile with a joint cost.

    Its columns `span`, whole tiles, down to the diagonal: [span.stop, span's width].
    """
    columns = unit_upper[: span.stop, span]
    if width == 1:
        return columns
    result = torch.empty_like(columns)
    for tile in spans(0, columns.shape[1], width):
        own = columns[span.start :][tile, tile]
        result[:, tile] = torch.linalg.solve_triangular(own, columns[:, tile], upper=True, left=False)
    return result


def spans(start: int, stop: int, width: int) -> Iterator[slice]:
    return (slice(at, min(at + width, stop)) for at in range(start, stop, width))


def whole_tiles(width: int, tile: int) -> int:
    return max(tile, width // tile * tile)
