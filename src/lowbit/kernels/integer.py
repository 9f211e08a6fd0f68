"""Rounding a slab of columns to an integer grid with feedback between its columns.

For each row on its own, column by column:

    t_j = target_j + sum over i < j of (weight_i - value_i) feedback_ij,    q_j = clamp(round(t_j / s_j + z_j), 0, top)

`round_slab_reference` is the oracle. `round_slab` runs numba over rows: a row's slab (128 columns) stays in level-1
cache, the feedback matrix in level 2, and every update is one contiguous multiply-add. Cost: N w^2 / 2 multiply-adds.
Rows never mix, so the result does not depend on the number of threads.
"""

import numba
import numpy as np
import torch
from torch import Tensor


def round_slab_reference(
    weight: Tensor, target: Tensor, feedback: Tensor, side: tuple[Tensor, Tensor], top: int
) -> tuple[Tensor, Tensor]:
    """weight, target: [N, w]; feedback: [w, w]; side: scale and zero point [N, w]; codes are 0..top."""
    scale, zero = side
    offset = zero.frac()
    target, codes, values = target.clone(), torch.empty_like(target), torch.empty_like(target)
    for j in range(target.shape[1]):
        t = target[:, j] / scale[:, j] + offset[:, j]
        codes[:, j] = (t.round() + (zero - offset)[:, j]).clamp(0, top)
        values[:, j] = scale[:, j] * (codes[:, j] - zero[:, j])
        error = weight[:, j] - values[:, j]
        target[:, j + 1 :] += error[:, None] * feedback[j, j + 1 :]
    return codes.to(torch.uint8), values


def round_slab(
    weight: Tensor, target: Tensor, feedback: Tensor, side: tuple[Tensor, Tensor], top: int
) -> tuple[Tensor, Tensor]:
    """The same as `round_slab_reference`, by numba; float32 or float64, on the CPU."""
    scale, zero = side
    codes = torch.empty(target.shape, dtype=torch.uint8)
    values = torch.empty_like(target)
    target = target.clone(memory_format=torch.contiguous_format)
    arrays = (weight, target, feedback.contiguous(), scale, zero, codes, values)
    limit = target.numpy().dtype.type
    _round_slab(*[array.numpy() for array in arrays], limit(0), limit(top))  # type: ignore[call-arg]
    return codes, values


@numba.njit(parallel=True, cache=True)
def _round_slab(weight, target, feedback, scale, zero, codes, values, bottom, top):  # type: ignore[no-untyped-def]
    n, w = target.shape
    for r in numba.prange(n):
        row = target[r]
        for j in range(w):
            s, z = scale[r, j], zero[r, j]
            offset = z - np.floor(z)
            q = np.rint(row[j] / s + offset) + (z - offset)
            q = min(max(q, bottom), top)
            value = s * (q - z)
            codes[r, j] = np.uint8(q)
            values[r, j] = value
            error = weight[r, j] - value
            for i in range(j + 1, w):
                row[i] += error * feedback[j, i]
