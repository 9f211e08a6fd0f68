"""Multiplying by, and decoding, partly binary codes straight from their packed bytes.

    value = level_rg[bit],  or where the mask says salient,  low_r + step_r (2 * seven more bits + bit)

The two levels of each group are looked up as any others (`lowbit.kernels.lookup_product`); then the salient weights, a
few of each row and in order, take the place of what was looked up for them. Counting trailing zeros in 32 bits of the
mask finds them. Cost: that of one-bit look-ups, and some 12 instructions for a salient weight. Rows never mix, so the
result does not depend on the number of threads. The oracle is `PartialBinary.decode`.
"""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from numba.cpython.unsafe.numbers import trailing_zeros
from torch import Tensor

from lowbit.core.errors import BadRequest
from lowbit.kernels.bit_streams import read_integers
from lowbit.kernels.lookup_product import PackedLookup, dot, fill_row, row_buffers
from lowbit.kernels.processor import in_threads

_SALIENT_BITS = 7
_OTHER_COUNT = "PartialBinary: the mask marks another number of salient weights than are stored."


@dataclass(frozen=True, eq=False)
class PackedPartial:
    """Rows of a layer as stored.

    coarse: bits and levels. mask: uint8 [N, ceil(K / 8)]. salient: uint8 [N, bytes], streams of 7 bits for `count`
    weights a row. grid: float32 [N, 2], low and step.
    """

    coarse: PackedLookup
    mask: Tensor
    salient: Tensor
    count: int
    grid: Tensor

    def decode(self) -> Tensor:
        """The values, float32 [N, K]."""
        values = torch.empty(len(self.mask), self.coarse.columns)
        arrays = *self._arrays(), values.numpy()
        in_threads(lambda first, last: _decode(first, last, *arrays), len(values), values.numel())
        return values

    def product(self, x: Tensor) -> Tensor:
        """x [T, K], float32, on the CPU, times the transposed values: [T, N]; for a few tokens."""
        out = torch.empty(len(x), len(self.mask))
        arrays = *self._arrays(), x.contiguous().numpy(), out.numpy()
        in_threads(lambda first, last: _product(first, last, *arrays), out.shape[1], out.shape[1] * x.shape[1])
        return out

    def _arrays(self) -> tuple[object, ...]:
        fine = self.mask.numpy(), self.salient.numpy(), self.count, self.grid.contiguous().numpy()
        return self.coarse.codes, self.coarse.levels, fine


@numba.njit(nogil=True, cache=True)
def _decode(first, last, codes, levels, fine, values):  # type: ignore[no-untyped-def]
    k = values.shape[1]
    buffers = row_buffers(k)
    for r in range(first, last):
        _fill(codes, levels, fine, r, k, buffers)
        values[r] = buffers[2][:k]


@numba.njit(nogil=True, cache=True)
def _product(first, last, codes, levels, fine, x, out):  # type: ignore[no-untyped-def]
    k = x.shape[1]
    buffers = row_buffers(k)
    for r in range(first, last):
        _fill(codes, levels, fine, r, k, buffers)
        for t in range(len(x)):
            out[t, r] = dot(buffers[2], x[t])


@numba.njit(nogil=True, cache=True)
def _fill(codes, levels, fine, r, k, buffers):  # type: ignore[no-untyped-def]
    """The values of row r into the second buffer."""
    mask, salient, count, grid = fine
    fill_row(codes, levels, r, k, buffers)
    bits, row = buffers[1], buffers[2]
    marked, more = np.empty((k + 31) // 32, np.uint32), np.empty(count, np.uint32)
    read_integers(mask[r], np.uint64(0), np.uint64(32), marked)
    read_integers(salient[r], np.uint64(0), np.uint64(_SALIENT_BITS), more)
    low, step, found = grid[r, 0], grid[r, 1], 0
    for i in range(len(marked)):
        left = marked[i]
        while left:
            if found == count:
                raise BadRequest(_OTHER_COUNT)
            c = np.uint64(32 * i) + np.uint64(trailing_zeros(left))  # type: ignore[call-arg]
            row[c] = low + step * np.float32(np.int32(more[found] << np.uint32(1)) | np.int32(bits[c]))
            left &= left - np.uint32(1)
            found += 1
    if found < count:
        raise BadRequest(_OTHER_COUNT)
