"""The nearest vector of a codebook, in a diagonal metric.

    index_v = argmin_c sum_t weight_vt (x_vt - C_ct)^2

`nearest_reference` forms all distances: the oracle. `nearest` runs numba over vectors with the lanes over centroids,
which it therefore takes as [d, centroids]. Cost: 2 d multiply-adds per vector and centroid.
"""

import numba
import numpy as np
import torch
from torch import Tensor

# Vectors that one thread handles at a time, and the multiply-adds below which waking other threads costs more.
_CHUNK = 256
_SERIAL_WORK = 1 << 21


def nearest_reference(x: Tensor, weight: Tensor, codebook: Tensor) -> Tensor:
    """x, weight: [V, d]; codebook: [C, d]. Returns int64 [V], the first of equals."""
    distance = (weight[:, None] * (x[:, None] - codebook).square()).sum(-1)
    return distance.argmin(1)


def nearest(x: Tensor, weight: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Index, int32 [V], and weighted squared distance, [V], of the nearest codebook vector.

    x: [V, d]; weight: [V, d], positive, may be expanded; codebook: [C, d], C >= 1; all of one float type.
    """
    index, distance = torch.empty(len(x), dtype=torch.int32), torch.empty(len(x), dtype=x.dtype)
    lanes = codebook.T.contiguous().numpy()
    arrays = (x.contiguous().numpy(), weight.contiguous().numpy(), lanes, index.numpy(), distance.numpy())
    if len(x) * lanes.size <= _SERIAL_WORK:
        _search(*arrays, 0, len(x))
    else:
        _search_in_parallel(*arrays)
    return index, distance


@numba.njit(parallel=True, cache=True)
def _search_in_parallel(x, weight, lanes, index, distance):  # type: ignore[no-untyped-def]
    for chunk in numba.prange(-(-len(x) // _CHUNK)):
        _search(x, weight, lanes, index, distance, chunk * _CHUNK, min(len(x), (chunk + 1) * _CHUNK))


@numba.njit(cache=True)
def _search(x, weight, lanes, index, distance, start, stop):  # type: ignore[no-untyped-def]
    score = np.empty(lanes.shape[1], x.dtype)
    for v in range(start, stop):
        score[:] = 0
        for t in range(x.shape[1]):
            _add_squares(x[v, t], weight[v, t], lanes[t], score)
        c = first_smallest(score)
        index[v], distance[v] = c, score[c]


@numba.njit(cache=True)
def _add_squares(x, weight, lane, score):  # type: ignore[no-untyped-def]
    for c in range(len(score)):
        difference = x - lane[c]
        score[c] += weight * difference * difference


@numba.njit(cache=True)
def first_smallest(score):  # type: ignore[no-untyped-def]
    """The index of the smallest score, the first of equals."""
    best, least = 0, score[0]
    for c in range(1, len(score)):
        if score[c] < least:
            best, least = c, score[c]
    return best
