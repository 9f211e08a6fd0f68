"""Breadth-first search over a slab's rounding decisions, each row on its own.

A survivor is a choice of levels for the columns so far. For each column j and survivor b

    t_bj = target_bj + sum over i < j of (weight_i - value_bi) feedback_ij,    score_b += cost_j (t_bj - value_bj)^2

is tried for the `count` levels nearest to t_bj (values stored twice count once), and of all these the best `width`
survive. With one survivor and one level this is rounding to nearest with feedback.

`beam_slab_reference` is the oracle. `beam_slab` runs numba over rows with the lanes over survivors, whose errors are
therefore kept as [columns, survivors]; survivors are in the order of their scores, so most are not looked at. Cost:
N B w^2 / 2 multiply-adds for B survivors, as much for moving their errors, and N B w searches among the levels.
Sums are taken in the order of the columns, whatever the width of a slab; rows never mix.
"""

import numba
import numpy as np
import torch
from torch import Tensor

Survivors = tuple[Tensor, Tensor, Tensor, Tensor]
"""index: [N, B, w] uint8, of the levels chosen; error: [N, B, w], weight - value; parent: [N, B] int64, the survivor
at the slab's start that each comes from; score: [N, B] float64, ascending, inf where there are fewer than B."""


def beam_slab_reference(
    weight: Tensor, target: Tensor, feedback: Tensor, cost: Tensor, levels: Tensor, score: Tensor, count: int
) -> Survivors:
    """weight: [N, w]; target: [N, B, w]; feedback: [w, w]; cost: [w] float64; levels: [N, w, L], ascending in L;
    score: [N, B] float64, ascending, inf for a survivor there is not; count: at least 1. Levels must differ here."""
    (n, width, w), count = target.shape, min(count, levels.shape[2])
    index, error = torch.zeros(n, width, w, dtype=torch.uint8), torch.zeros_like(target)
    parent = torch.arange(width).expand(n, width)
    for j in range(w):
        aim = target[:, :, j].gather(1, parent)
        for i in range(j):
            aim = aim + error[:, :, i] * feedback[i, j]
        distance = (aim[:, :, None] - levels[:, None, j]).abs()
        near = distance.sort(dim=2, stable=True).indices[:, :, :count]
        squared = distance.gather(2, near).double().square()
        chosen = (score[:, :, None] + cost[j] * squared).flatten(1).sort(dim=1, stable=True)
        score, best = chosen.values[:, :width], chosen.indices[:, :width]
        origin, level = best // count, near.flatten(1).gather(1, best)
        index = index.gather(1, origin[:, :, None].expand_as(index))
        error = error.gather(1, origin[:, :, None].expand_as(error))
        parent = parent.gather(1, origin)
        index[:, :, j] = level.to(torch.uint8)
        error[:, :, j] = weight[:, None, j] - levels[:, j].gather(1, level)
    return index, error, parent, score


def beam_slab(
    weight: Tensor, target: Tensor, feedback: Tensor, cost: Tensor, levels: Tensor, score: Tensor, count: int
) -> Survivors:
    """The same as `beam_slab_reference`, by numba; float32 or float64, on the CPU, at most 256 levels."""
    n, width, w = target.shape
    index, error = torch.zeros(n, width, w, dtype=torch.uint8), torch.zeros_like(target)
    parent, score = torch.zeros(n, width, dtype=torch.int64), score.clone(memory_format=torch.contiguous_format)
    inputs = (weight.contiguous(), target.contiguous(), feedback.T.contiguous(), cost.double(), levels.contiguous())
    outputs = (score, index, error, parent)
    _beam_slab(*[one.numpy() for one in (*inputs, *outputs)], min(count, levels.shape[2]))  # type: ignore[call-arg]
    return index, error, parent, score


@numba.njit(parallel=True, cache=True)
def _beam_slab(weight, target, back, cost, levels, score, index, error, parent, count):  # type: ignore[no-untyped-def]
    for r in numba.prange(len(target)):
        _beam_row(weight[r], target[r], back, cost, levels[r], score[r], index[r], error[r], parent[r], count)


@numba.njit(cache=True)
def _beam_row(weight, target, back, cost, levels, score, index, error, parent, count):  # type: ignore[no-untyped-def]
    width, w = target.shape
    errors, chosen = np.zeros((2, w, width), target.dtype), np.zeros((2, w, width), np.uint8)
    parents, now = np.zeros((2, width), np.int64), 0
    aim, scores = np.empty(width, target.dtype), np.empty(width, np.float64)
    origin, level = np.empty(width, np.int64), np.empty(width, np.int64)
    parents[0] = np.arange(width)
    alive = 0
    while alive < width and score[alive] < np.inf:
        alive += 1
    for j in range(w):
        for b in range(alive):
            aim[b] = target[parents[now, b], j]
        for i in range(j):
            _add_multiple(aim, errors[now, i], back[j, i], alive)
        alive = _expand(aim, levels[j], cost[j], count, alive, score, scores, origin, level)
        moved = False
        for b in range(alive):
            moved |= origin[b] != b
        if moved:
            for b in range(alive):
                parents[1 - now, b] = parents[now, origin[b]]
            for i in range(j):
                _take(errors[now, i], chosen[now, i], origin, errors[1 - now, i], chosen[1 - now, i], alive)
            now = 1 - now
        for b in range(alive):
            score[b] = scores[b]
            errors[now, j, b], chosen[now, j, b] = weight[j] - levels[j, level[b]], level[b]
    score[alive:] = np.inf
    for b in range(alive):
        parent[b] = parents[now, b]
        for j in range(w):
            error[b, j], index[b, j] = errors[now, j, b], chosen[now, j, b]


@numba.njit(cache=True)
def _add_multiple(aim, error, factor, alive):  # type: ignore[no-untyped-def]
    for b in range(alive):
        aim[b] += error[b] * factor


@numba.njit(cache=True)
def _take(error, chosen, origin, new_error, new_chosen, alive):  # type: ignore[no-untyped-def]
    for b in range(alive):
        new_error[b], new_chosen[b] = error[origin[b]], chosen[origin[b]]


@numba.njit(cache=True)
def _expand(aim, levels, cost, count, alive, score, scores, origin, level):  # type: ignore[no-untyped-def]
    """The best survivors after one more column, in the order of their scores: how many there are."""
    found, width = 0, len(scores)
    for b in range(alive):
        if found == width and score[b] >= scores[width - 1]:
            break
        above = np.searchsorted(levels, aim[b])
        below = above - 1
        for _ in range(count):
            if above == len(levels) and below < 0:
                break
            if above == len(levels) or (below >= 0 and aim[b] - levels[below] <= levels[above] - aim[b]):
                near, below = below, _next_other(levels, below, -1)
            else:
                near, above = above, _next_other(levels, above, 1)
            distance = np.float64(aim[b] - levels[near])
            total = score[b] + cost * (distance * distance)
            if found == width and total >= scores[width - 1]:
                break
            found = min(found + 1, width)
            at = found - 1
            while at > 0 and scores[at - 1] > total:
                scores[at], origin[at], level[at] = scores[at - 1], origin[at - 1], level[at - 1]
                at -= 1
            scores[at], origin[at], level[at] = total, b, near
    return found


@numba.njit(cache=True)
def _next_other(levels, at, step):  # type: ignore[no-untyped-def]
    """The next level that is another value: some codes store one value twice."""
    other = at + step
    while 0 <= other < len(levels) and levels[other] == levels[at]:
        other += step
    return other
