"""Multiplying by a sparse matrix [N, K] held in rows: y_r = sum over entries i of row r of value_i x_(column_i).

`product_reference` gathers and adds with torch: the oracle, and what other devices and autograd run. `product` runs
numba over rows, with the lanes over tokens. Cost: as many multiply-adds a token as there are entries. Rows never mix,
so the result does not depend on the number of threads.
"""

import numba
import torch
from torch import Tensor

# Gathered numbers that the reference holds at a time, and the multiply-adds below which waking threads costs more.
_GATHERED = 1 << 24
_SERIAL_WORK = 1 << 18


def product_reference(start: Tensor, column: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """start: int64 [N + 1], where each row's entries begin; column: int32 [E]; value: float32 [E]; x: [T, K].

    Returns [T, N] in x's type.
    """
    rows, index = len(start) - 1, column.long()
    row = torch.repeat_interleave(torch.arange(rows, device=x.device), start.diff(), output_size=len(value))
    value = value.to(x.dtype)
    step = max(1, _GATHERED // max(1, len(value)))
    parts = [x.new_zeros(len(part), rows).index_add(1, row, part[:, index] * value) for part in torch.split(x, step)]
    return torch.cat(parts)


def product(start: Tensor, column: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """The same as `product_reference` but for the order of sums; by numba for float32 on the CPU."""
    if not x.is_cpu or x.requires_grad or x.dtype != torch.float32:
        return product_reference(start, column, value, x)
    lanes = x.T.contiguous()
    out = torch.zeros(len(start) - 1, len(x))
    run = _add_rows if len(value) * len(x) <= _SERIAL_WORK else _add_rows_in_parallel
    run(start.numpy(), column.numpy(), value.numpy(), lanes.numpy(), out.numpy())
    return out.T


@numba.njit(parallel=True, cache=True)
def _add_rows_in_parallel(start, column, value, lanes, out):  # type: ignore[no-untyped-def]
    for r in numba.prange(len(out)):
        _add_row(start, column, value, lanes, out, r)


@numba.njit(cache=True)
def _add_rows(start, column, value, lanes, out):  # type: ignore[no-untyped-def]
    for r in range(len(out)):
        _add_row(start, column, value, lanes, out, r)


@numba.njit(cache=True)
def _add_row(start, column, value, lanes, out, r):  # type: ignore[no-untyped-def]
    for i in range(start[r], start[r + 1]):
        factor, lane = value[i], lanes[column[i]]
        for t in range(lanes.shape[1]):
            out[r, t] += factor * lane[t]
