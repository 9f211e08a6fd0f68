"""Rounding to tables of levels: each group of weights has a sorted table, each weight is one of its levels.

    t_j = target_j + sum over i < j of (weight_i - value_i) feedback_ij,    value_j = the level nearest to t_j

`round_slab_reference` is the oracle. The numba versions run over rows and find a level by binary search among the
midpoints, so that a table costs log2(levels) comparisons a weight, not one for each level. Cost with feedback:
N w^2 / 2 multiply-adds. Rows never mix, so the result does not depend on the number of threads.
"""

import numba
import numpy as np
import torch
from torch import Tensor


def round_slab_reference(
    weight: Tensor, target: Tensor, feedback: Tensor, tables: Tensor, group: Tensor
) -> tuple[Tensor, Tensor]:
    """Ranks and values, both [N, w]; arguments as for `round_slab`."""
    rows = torch.arange(len(target)) if len(tables) > 1 else torch.zeros(len(target), dtype=torch.int64)
    target, ranks, values = target.clone(), torch.empty(target.shape, dtype=torch.uint8), torch.empty_like(target)
    for j in range(target.shape[1]):
        table = tables[rows, group[j]]
        midpoints = (table[:, 1:] + table[:, :-1]) / 2
        ranks[:, j] = (midpoints < target[:, [j]]).sum(1)
        values[:, j] = table.gather(1, ranks[:, [j]].long())[:, 0]
        error = weight[:, j] - values[:, j]
        target[:, j + 1 :] += error[:, None] * feedback[j, j + 1 :]
    return ranks, values


def round_slab(
    weight: Tensor, target: Tensor, feedback: Tensor, tables: Tensor, group: Tensor
) -> tuple[Tensor, Tensor]:
    """The rank in its table, uint8, and the value of each weight, both [N, w]; float32 or float64, on the CPU.

    weight, target: [N, w]; feedback: [w, w]; tables: [N, G, L], or [1, G, L] for all rows, ascending, L <= 256;
    group: int64 [w], the table of each column.
    """
    ranks, values = torch.empty(target.shape, dtype=torch.uint8), torch.empty_like(target)
    target = target.clone(memory_format=torch.contiguous_format)
    arrays = (weight, target, feedback.contiguous(), tables.contiguous(), group, ranks, values)
    _round_slab(*[array.numpy() for array in arrays])
    return ranks, values


def round_nearest(target: Tensor, tables: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """`round_slab` without feedback."""
    ranks, values = torch.empty(target.shape, dtype=torch.uint8), torch.empty_like(target)
    _round_nearest(*[array.numpy() for array in (target, tables.contiguous(), group, ranks, values)])
    return ranks, values


@numba.njit(parallel=True, cache=True)
def _round_slab(weight, target, feedback, tables, group, ranks, values):  # type: ignore[no-untyped-def]
    n, w = target.shape
    step = 1 if len(tables) > 1 else 0
    for r in numba.prange(n):
        row, own = target[r], tables[np.int64(r) * step]
        for j in range(w):
            table = own[group[j]]
            q = _rank(table, row[j])
            ranks[r, j], values[r, j] = q, table[q]
            error = weight[r, j] - table[q]
            for i in range(j + 1, w):
                row[i] += error * feedback[j, i]


@numba.njit(parallel=True, cache=True)
def _round_nearest(target, tables, group, ranks, values):  # type: ignore[no-untyped-def]
    n, w = target.shape
    step = 1 if len(tables) > 1 else 0
    for r in numba.prange(n):
        own = tables[np.int64(r) * step]
        for j in range(w):
            table = own[group[j]]
            q = _rank(table, target[r, j])
            ranks[r, j], values[r, j] = q, table[q]


@numba.njit(cache=True)
def _rank(table, x):  # type: ignore[no-untyped-def]
    """How many midpoints of an ascending table lie below x."""
    low, high = 0, len(table) - 1
    half = table.dtype.type(0.5)
    while low < high:
        middle = (low + high) >> 1
        if (table[middle] + table[middle + 1]) * half < x:
            low = middle + 1
        else:
            high = middle
    return low
