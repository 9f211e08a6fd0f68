"""Exact weighted k-means in one dimension, for many rows at once.

    minimise over L levels   sum_i weight_i (x_i - nearest level)^2

In one dimension clusters are runs of the sorted points, so the optimum is a shortest path: with D_l(i) the least cost
of l runs over the first i points,

    D_l(i) = min over j <= i of D_{l-1}(j) + cost(j, i),     cost(j, i) = S_xx - S_x^2 / S_w of the points j..i-1

from prefix sums. The best j never falls as i grows, so each l is filled by halving steps: i log i instead of i^2
evaluations. No start, no seed, no local minimum. Above 4096 points, neighbours are first merged into so many means.
Cost: L n log2 n evaluations a row, in float64, and 4 L n bytes a thread.

Papers: Wang and Song, Ckmeans.1d.dp, 2011; Gronlund et al., arXiv 1701.07204 (divide and conquer, prefix sums).
"""

import numba
import numpy as np
import torch
from torch import Tensor

_MOST_POINTS = 4096


def best_levels(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """The `count` levels [R, count], ascending, float64, that represent rows of points best.

    x, weight: [R, n]; weights >= 0, a row of zeros counts every point the same. With fewer different points than
    levels, the last level is repeated.
    """
    order = x.argsort(dim=1, stable=True)
    points, mass = x.double().gather(1, order).contiguous(), weight.double().gather(1, order).contiguous()
    total = mass.sum(1, keepdim=True)
    mass = torch.where(total > 0, mass / torch.where(total > 0, total, 1.0), 1.0 / x.shape[1])
    points, mass = _merged(points, mass)
    levels = torch.empty(len(x), count, dtype=torch.float64)
    _best_levels(points.contiguous().numpy(), mass.contiguous().numpy(), levels.numpy())
    return levels


def _merged(points: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """At most _MOST_POINTS of sorted points [R, n], each the mean of as many neighbours."""
    n = points.shape[1]
    size = -(-n // _MOST_POINTS)
    if size == 1:
        return points, mass
    filling = -n % size
    x = torch.cat((points, points[:, -1:].expand(-1, filling)), 1).view(len(points), -1, size)
    w = torch.cat((mass, mass.new_zeros(len(mass), filling)), 1).view(x.shape)
    total = w.sum(-1)
    return torch.where(total > 0, (w * x).sum(-1) / torch.where(total > 0, total, 1.0), x.mean(-1)), total


@numba.njit(parallel=True, cache=True)
def _best_levels(points, mass, levels):  # type: ignore[no-untyped-def]
    for r in numba.prange(len(points)):
        _row(points[r], mass[r], levels[r])


@numba.njit(cache=True)
def _row(points, mass, levels):  # type: ignore[no-untyped-def]
    n, count = len(points), min(len(levels), len(points))
    centre = np.sum(points * mass)
    sums = np.zeros((3, n + 1))
    for i in range(n):
        x = points[i] - centre
        sums[0, i + 1] = sums[0, i] + mass[i]
        sums[1, i + 1] = sums[1, i] + mass[i] * x
        sums[2, i + 1] = sums[2, i] + mass[i] * x * x
    start = np.zeros((count + 1, n + 1), np.int32)
    least = np.empty(n + 1)
    for i in range(n + 1):
        least[i] = _cost(sums, 0, i)
    for run in range(2, count + 1):
        least = _one_more(sums, least, start[run])
    stop = n
    for run in range(count, 0, -1):
        begin = start[run, stop] if run > 1 else 0
        weight = sums[0, stop] - sums[0, begin]
        if weight > 0:
            levels[run - 1] = (sums[1, stop] - sums[1, begin]) / weight + centre
        else:  # points that cost nothing, or none
            levels[run - 1] = points[min(begin, n - 1)]
        stop = begin
    levels[count:] = levels[count - 1]
    levels.sort()


@numba.njit(cache=True)
def _one_more(sums, before, start):  # type: ignore[no-untyped-def]
    """The least costs with one run more; writes where that run starts."""
    n = len(before) - 1
    least = np.zeros(n + 1)
    step = 1
    while step <= n:
        step *= 2
    while step >= 1:
        for i in range(step, n + 1, 2 * step):
            low = start[i - step]
            high = min(start[i + step] if i + step <= n else n, i)
            best, at = np.inf, low
            for j in range(low, high + 1):
                cost = before[j] + _cost(sums, j, i)
                if cost < best:
                    best, at = cost, j
            least[i], start[i] = best, at
        step //= 2
    return least


@numba.njit(cache=True)
def _cost(sums, j, i):  # type: ignore[no-untyped-def]
    weight = sums[0, i] - sums[0, j]
    if weight <= 0:
        return 0.0
    total = sums[1, i] - sums[1, j]
    return max(0.0, sums[2, i] - sums[2, j] - total * total / weight)
