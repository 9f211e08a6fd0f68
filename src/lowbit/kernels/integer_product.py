"""Multiplying by, and decoding, integer codes straight from their packed bytes.

    y_r = sum over groups g of  s_rg (sum over c in g of q_rc x_c)  -  s_rg z_rg (sum over c in g of x_c)

Codes of b bits repeat their place within bytes every P = 8 / gcd(b, 8) codes. The activations are therefore laid out
as P planes, plane j holding x_j, x_(j+P), ...: each plane meets one fixed shift and mask, its loads are contiguous, and
LLVM turns the loop over the planes' columns into vectors. Three things matter for that, each several times in speed:
indices are unsigned (numba tests signed ones for wrap-around), the inner loop has a constant number of trips, and the
bits are a constant, so a kernel is compiled for each pair of bits and trips and cached on disk.

Groups with few columns in a plane leave nothing to make vectors of: then each row is decoded into the cache first.

Cost: N K multiply-adds and as many shifts a token, N K b / 8 bytes read. Rows never mix, so the result does not depend
on the number of threads. `product_reference` and `decode_reference` are the oracles, and what other devices run.
"""

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from lowbit.kernels.bit_streams import set_stream, unpack_reference
from lowbit.kernels.lookup_product import dot

# Columns of a plane in one pass of the inner loop, at most: a few vectors of 16.
_LONGEST_TRIP = 64
# Groups of fewer columns, or fewer in a plane, are faster by decoding each row first (3 bits in groups of 32: 3.4
# billion weights/s in place of 0.8).
_SMALL_GROUP, _FEW_IN_PLANE = 48, 16
_ANY_ORDER_OF_SUMS = {"reassoc", "contract", "nsz"}


@dataclass(frozen=True, eq=False)
class PackedGrid:
    """A layer [N, columns] on an integer grid, as stored.

    codes: uint8 [N, ceil(columns * bits / 8)], each row a little-endian bit stream.
    scale: [N, G], or [1, 1] for the whole layer, floating point.
    zero: uint8, one bit stream of the zero points, [N G] integers of `bits` bits; None where all are `middle`.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    columns: int
    middle: float


def decode_reference(grid: PackedGrid, start: int, stop: int) -> Tensor:
    """The values s (q - z) of rows start..stop-1, float32 [stop - start, columns]."""
    scale = grid.scale.float()
    if grid.zero is None:
        zero = torch.full_like(scale, grid.middle)
    else:
        zero = unpack_reference(grid.zero[None], grid.bits, scale.numel()).view(scale.shape).float()
    if len(scale) > 1:
        scale, zero = scale[start:stop], zero[start:stop]
    codes = unpack_reference(grid.codes[start:stop], grid.bits, grid.columns).float()
    groups = codes.view(stop - start, scale.shape[1], -1)
    return (scale[:, :, None] * (groups - zero[:, :, None])).view(stop - start, grid.columns)


def product_reference(grid: PackedGrid, x: Tensor) -> Tensor:
    """x [T, columns], float32, times the transposed values: [T, N]."""
    return x @ decode_reference(grid, 0, len(grid.codes)).T


def decode_rows(grid: PackedGrid, start: int, stop: int) -> Tensor:
    """The same as `decode_reference`, bit for bit, by numba."""
    values = torch.empty(stop - start, grid.columns)
    scale, zero = _side(grid)
    codes = grid.codes[start:stop].contiguous().view(-1).numpy()
    side = scale, zero, np.float32(grid.middle)
    _decode(codes, side, np.uint64(grid.bits), np.uint64(start), values.numpy())
    return values


def product(grid: PackedGrid, x: Tensor) -> Tensor:
    """The same as `product_reference` but for the order of sums, by numba; x: float32 [T, columns], on the CPU."""
    period = 8 // gcd(grid.bits, 8)
    tokens, groups = len(x), grid.scale.shape[1]
    out = torch.empty(tokens, len(grid.codes))
    scale, zero = _side(grid)
    side = scale, zero, np.float32(grid.middle)
    if grid.columns // groups < max(_SMALL_GROUP, _FEW_IN_PLANE * period):
        codes = grid.codes.contiguous().view(-1).numpy()
        _product_by_rows(codes, side, np.uint64(grid.bits), x.contiguous().numpy(), out.numpy())
        return out
    planes = torch.zeros(tokens, -(-grid.columns // period), period)
    planes.view(tokens, -1)[:, : grid.columns] = x
    planes = planes.transpose(1, 2).contiguous()
    sums = x.view(tokens, groups, -1).sum(-1)
    kernel = _product_kernel(grid.bits, _trips(grid.columns // groups // period))
    kernel(grid.codes.numpy(), side, grid.columns, planes.numpy(), sums.numpy(), out.numpy())
    return out


def _side(grid: PackedGrid) -> tuple[Any, Any]:
    zero = np.empty(0, np.uint8) if grid.zero is None else grid.zero.numpy()
    return grid.scale.float().numpy(), zero


def _trips(columns: int) -> int:
    """A constant trip count for so many columns of a plane in each group: one that leaves none over, if there is."""
    divisors = [t for t in range(8, _LONGEST_TRIP + 1) if columns % t == 0]
    return max(divisors, default=max(1, min(columns, _LONGEST_TRIP)))


@numba.njit
def _code(stream, bits, index):  # type: ignore[no-untyped-def]
    """Integer `index` of a bit stream."""
    at = np.uint64(index) * np.uint64(bits)
    byte, shift = at >> np.uint64(3), at & np.uint64(7)
    word = np.int32(stream[byte])
    if shift + np.uint64(bits) > np.uint64(8):
        word |= np.int32(stream[byte + np.uint64(1)]) << 8
    return np.float32((word >> np.int32(shift)) & ((1 << bits) - 1))


@numba.njit
def _zero(zero, middle, bits, index):  # type: ignore[no-untyped-def]
    """Zero point `index`: stored, or `middle` where none are."""
    return _code(zero, bits, index) if len(zero) else middle


@cache
def _product_kernel(bits: int, trips: int) -> Any:
    """kernel(codes, (scale, zero, middle), columns, planes [T, P, .], sums [T, G], out [T, N])"""
    period, step, top = 8 // gcd(bits, 8), bits // gcd(bits, 8), (1 << bits) - 1
    U = np.uint64

    @numba.njit(parallel=True, cache=True, fastmath=_ANY_ORDER_OF_SUMS)
    def kernel(codes, side, columns, planes, sums, out):  # type: ignore[no-untyped-def]
        scale, zero, middle = side
        groups = U(scale.shape[1])
        size = U(columns) // groups
        for r in numba.prange(codes.shape[0]):
            row, at_row = codes[r], U(r) if scale.shape[0] > 1 else U(0)
            for t in range(U(out.shape[0])):
                y = np.float32(0)
                for g in range(groups):
                    start, stop, total = g * size, (g + U(1)) * size, np.float32(0)
                    first, last = (start + U(period - 1)) // U(period), stop // U(period)
                    passes = (last - first) // U(trips) if last > first else U(0)
                    for c in range(start, min(first * U(period), stop)):
                        total += _code(row, bits, c) * planes[t, c % U(period), c // U(period)]
                    for p in range(passes):
                        part, i = np.float32(0), first + p * U(trips)
                        for k in range(i, i + U(trips)):
                            for j in range(U(period)):
                                byte, shift = k * U(step) + (j * U(bits) >> U(3)), j * U(bits) & U(7)
                                word = np.int32(row[byte])
                                if shift + U(bits) > U(8):
                                    word = np.int32(word | np.int32(np.int32(row[byte + U(1)]) << np.int32(8)))
                                code = np.int32(np.int32(word >> np.int32(shift)) & np.int32(top))
                                part += np.float32(code) * planes[t, j, k]
                        total += part
                    for c in range((first + passes * U(trips)) * U(period), stop):
                        total += _code(row, bits, c) * planes[t, c % U(period), c // U(period)]
                    s = scale[at_row, g]
                    y += s * total - s * _zero(zero, middle, bits, at_row * groups + g) * sums[t, g]
                out[t, r] = y

    return kernel


@numba.njit(parallel=True, cache=True)
def _product_by_rows(codes, side, bits, x, out):  # type: ignore[no-untyped-def]
    """out [T, N] of x [T, K] and all rows of a layer."""
    for r in numba.prange(out.shape[1]):
        values = np.empty(x.shape[1], np.float32)
        _decode_row(codes, side, bits, r * (len(codes) // out.shape[1]), np.uint64(r), values)
        for t in range(len(x)):
            out[t, r] = dot(values, x[t])


@numba.njit(parallel=True, cache=True)
def _decode(codes, side, bits, first, values):  # type: ignore[no-untyped-def]
    """All rows of `codes`, the first of which is row `first` of the layer."""
    for r in numba.prange(len(values)):
        _decode_row(codes, side, bits, r * (len(codes) // len(values)), np.uint64(r) + first, values[r])


@numba.njit(cache=True)
def _decode_row(codes, side, bits, start, r, values):  # type: ignore[no-untyped-def]
    """The values of row r of the layer, whose codes begin at byte `start`."""
    scale, zero, middle = side
    U, columns, groups = np.uint64, len(values), scale.shape[1]
    size, held, at_row = U(columns // groups), np.empty((columns + 7) // 8, np.uint64), r if len(scale) > 1 else U(0)
    set_stream(codes, U(start), bits, held, U(len(held)))
    row = held.view(np.uint8)
    for g in range(U(groups)):
        s, z = scale[at_row, g], _zero(zero, middle, bits, at_row * U(groups) + g)
        for c in range(g * size, (g + U(1)) * size):
            values[c] = s * (np.float32(row[c]) - z)
