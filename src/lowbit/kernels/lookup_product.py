"""Multiplying by, and decoding, codes that look levels up, straight from their packed bytes.

    y_r = sum over columns c of  table_rg[code_rc] x_c,    table_rg = sum over terms of a number and a set of levels,

g the group of c: one set for all times a scale, a table for each group, or sums of few directions.

One row at a time passes through buffers that stay in the first-level cache: its codes, one a byte
(`lowbit.kernels.bit_streams`); its values, 16 looked up by an instruction (`lowbit.kernels.lookup_lanes`); their dot
products with each token. Three simple loops, each of which is vectors throughout, where one loop for all is not.

Codes may lie in several streams, or several in a byte as digits of another base, or have lent bits to each other:
only the first loop knows.

Cost: some 5 instructions for 16 weights, and one for each token and 16 weights more. Rows never mix, so the result does
not depend on the number of threads. The oracle is the code's own `decode`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lowbit.kernels.bit_streams import add_stream
from lowbit.kernels.lookup_lanes import LANES, Span, look_up
from lowbit.kernels.processor import in_threads

_ANY_ORDER_OF_SUMS = {"reassoc", "contract", "nsz"}


class Codes(NamedTuple):
    """Where the codes of a layer [N, K] lie; all arrays numpy's.

    low: uint8 [N, S, bytes], S streams of `low_bits` bits; stream s holds the bits from s low_bits on.
    high: uint8 [N, bytes], a stream of `high_bits` bits, those above; 0 for none.
    digits: uint8 [256, D], the codes in a byte of the only stream, which is then no stream of bits; [0, 0] for bits.
    loans: int64 [M, 2], first columns of spans of `span` columns: the topmost bit of the codes in the second span is
    the bit above that of the codes in the first.
    """

    low: np.ndarray
    low_bits: int
    high: np.ndarray
    high_bits: int
    digits: np.ndarray
    loans: np.ndarray
    span: int


class Levels(NamedTuple):
    """Tables of groups of columns, sums of `terms` sets of levels times a number each.

    Group g of row r finds its sets from place r sets_row + g sets_group of `sets` on, each `size` numbers long (16, 32,
    64, 128 or 256), and the numbers likewise. sets, numbers: float32, flat. group: the columns of a group.
    """

    sets: np.ndarray
    size: int
    sets_row: int
    sets_group: int
    numbers: np.ndarray
    numbers_row: int
    numbers_group: int
    terms: int
    group: int


def plane_codes(low: Tensor, low_bits: int, high: Tensor | None = None, high_bits: int = 0) -> Codes:
    """Codes in streams of bits; low: uint8 [N, S, bytes], high: uint8 [N, bytes]."""
    high = low[:, 0, :0] if high is None else high
    return Codes(low.numpy(), low_bits, high.numpy(), high_bits, np.empty((0, 0), np.uint8), _NO_LOANS, 0)


def exchanged_codes(low: Tensor, loans: Tensor, span: int) -> Codes:
    """Codes in planes of one bit, uint8 [N, S, bytes]; loans: int64 [M, 2], see `Codes`."""
    return plane_codes(low, 1)._replace(loans=loans.numpy(), span=span)


def digit_codes(packed: Tensor, base: int, per_byte: int) -> Codes:
    """Codes as digits of a base, the first lowest, in the bytes of uint8 [N, 1, bytes]."""
    digits = (np.arange(256)[:, None] // base ** np.arange(per_byte) % base).astype(np.uint8)
    return plane_codes(packed, 8)._replace(digits=digits)


_NO_LOANS = np.empty((0, 2), np.int64)


def levels(sets: Tensor, numbers: Tensor, group: int) -> Levels:
    """sets: float32 [R or 1, G or 1, terms, L], L <= 256, by code; numbers: float32 [R or 1, G or 1, terms]."""
    count, size = sets.shape[3], LANES
    while size < count:
        size *= 2
    # A table that is shorter than a vector is read with what comes after it, which no code reaches.
    filled = pad(sets, (0, size - count)) if sets.shape[2] > 1 else sets
    flat = pad(filled.reshape(-1), (0, size))
    return Levels(
        flat.numpy(),
        size,
        *_steps(filled),
        numbers.contiguous().view(-1).numpy(),
        *_steps(numbers),
        sets.shape[2],
        group,
    )


@dataclass(frozen=True, eq=False)
class PackedLookup:
    """Rows of a layer as stored. columns: K; blocks: float32 [N, B], factors of blocks of K / B columns each."""

    codes: Codes
    levels: Levels
    columns: int
    blocks: Tensor | None = None

    def decode(self) -> Tensor:
        """The values, float32 [N, K]."""
        values = torch.empty(len(self.codes.low), self.columns)
        arrays = self.codes, self.levels, factors(self.blocks), values.numpy()
        in_threads(lambda first, last: _decode(first, last, *arrays), len(values), values.numel())
        return values

    def product(self, x: Tensor) -> Tensor:
        """x [T, K], float32, on the CPU, times the transposed values: [T, N]; for a few tokens."""
        out = torch.empty(len(x), len(self.codes.low))
        arrays = self.codes, self.levels, factors(self.blocks), x.contiguous().numpy(), out.numpy()
        in_threads(lambda first, last: _product(first, last, *arrays), out.shape[1], out.shape[1] * self.columns)
        return out


def factors(blocks: Tensor | None) -> np.ndarray:
    """Factors of blocks as `scale_blocks` takes them; [0, 0] for none."""
    return np.empty((0, 0), np.float32) if blocks is None else blocks.float().contiguous().numpy()


def _steps(tensor: Tensor) -> tuple[int, int]:
    """How far apart the rows and the groups of [R or 1, G or 1, ..] lie, 0 where they share."""
    rows, groups, each = tensor.shape[0], tensor.shape[1], tensor[0, 0].numel()
    return (groups * each if rows > 1 else 0), (each if groups > 1 else 0)


@numba.njit(nogil=True, cache=True)
def _decode(first, last, codes, levels, blocks, values):  # type: ignore[no-untyped-def]
    k = values.shape[1]
    buffers = row_buffers(k)
    for r in range(first, last):
        fill_row(codes, levels, r, k, buffers)
        if len(blocks):
            scale_blocks(blocks[r], k, buffers[1])
        values[r] = buffers[1][:k]


@numba.njit(nogil=True, cache=True)
def _product(first, last, codes, levels, blocks, x, out):  # type: ignore[no-untyped-def]
    k = x.shape[1]
    buffers = row_buffers(k)
    for r in range(first, last):
        fill_row(codes, levels, r, k, buffers)
        if len(blocks):
            scale_blocks(blocks[r], k, buffers[1])
        for t in range(len(x)):
            out[t, r] = dot(buffers[1], x[t])


@numba.njit(nogil=True, cache=True)
def row_buffers(k):  # type: ignore[no-untyped-def]
    """For a row's codes, a byte each in uint64 words, and for its values, float32; both a vector longer than needed."""
    return np.empty(k // 8 + LANES, np.uint64), np.empty(k + LANES, np.float32)


@numba.njit(nogil=True, cache=True)
def fill_row(codes, levels, r, k, buffers):  # type: ignore[no-untyped-def]
    """The codes and the values of row r."""
    _read(codes, r, k, buffers[0])
    _look_up_groups(levels, r, k, buffers[0].view(np.uint8), buffers[1])


@numba.njit(nogil=True, cache=True, fastmath=_ANY_ORDER_OF_SUMS)
def dot(values, x):  # type: ignore[no-untyped-def]
    """The sum of values[i] * x[i], for i below the length of x."""
    total = np.float32(0)
    for i in range(np.uint64(len(x))):
        total += values[i] * x[i]
    return total


@numba.njit(nogil=True, cache=True)
def _read(codes, r, k, held):  # type: ignore[no-untyped-def]
    """The codes of row r as bytes of `held`, uint64 [K / 8 + 16], the rest zeros."""
    U = np.uint64
    held[:] = 0
    if len(codes.digits):
        _read_digits(codes.digits, codes.low[r, 0], held.view(np.uint8)[:k])
        return
    words, bits = held[: (k + 7) // 8], U(codes.low_bits)
    for s in range(codes.low.shape[1]):
        add_stream(codes.low[r, s], bits, U(s) * bits, words)
    if codes.high_bits:
        add_stream(codes.high[r], U(codes.high_bits), U(codes.low.shape[1]) * bits, words)
    _settle(codes, held.view(np.uint8))


@numba.njit(nogil=True, cache=True)
def _read_digits(digits, row, codes):  # type: ignore[no-untyped-def]
    U = np.uint64
    each = U(digits.shape[1])
    for byte in range(U(len(row))):
        some, at = digits[row[byte]], byte * each
        for d in range(min(each, U(len(codes)) - at)):
            codes[at + d] = some[d]


@numba.njit(nogil=True, cache=True)
def _settle(codes, row):  # type: ignore[no-untyped-def]
    """Give bits back that spans of columns have lent to others."""
    top = np.uint8(1 << max(0, codes.low.shape[1] * codes.low_bits - 1))
    for i in range(len(codes.loans)):
        borrower, lender = codes.loans[i]
        for c in range(codes.span):
            lent = row[lender + c] & top
            row[borrower + c] |= lent << np.uint8(1)
            row[lender + c] ^= lent


@numba.njit(nogil=True, cache=True)
def _look_up_groups(levels, r, k, codes, row):  # type: ignore[no-untyped-def]
    """The values of row r, float32 [K + 16]; each group writes up to 15 places after it, which the next one mends."""
    table, one = np.empty(levels.size, np.float32), np.float32(1)
    for g in range(k // levels.group):
        at, first = levels.sets_row * r + levels.sets_group * g, levels.numbers_row * r + levels.numbers_group * g
        start, stop = g * levels.group, (g + 1) * levels.group
        if levels.terms == 1:
            look_up(Span(at, levels.size, levels.numbers[first], start, stop), levels.sets, codes, row)
        else:
            _add_up(levels, at, first, table)
            look_up(Span(0, levels.size, one, start, stop), table, codes, row)


@numba.njit(nogil=True, cache=True)
def _add_up(levels, at, first, table):  # type: ignore[no-untyped-def]
    """The table of a group, summed in the order of the terms."""
    U = np.uint64
    for term in range(levels.terms):
        number, start = levels.numbers[first + term], U(at + term * levels.size)
        for i in range(U(levels.size)):
            part = number * levels.sets[start + i]
            table[i] = table[i] + part if term else part


@numba.njit(nogil=True, cache=True)
def scale_blocks(factors, k, row):  # type: ignore[no-untyped-def]
    """Multiply the first k places of a row, in as many blocks as there are factors."""
    size = np.uint64(k // len(factors))
    for b in range(np.uint64(len(factors))):
        for c in range(b * size, (b + np.uint64(1)) * size):
            row[c] *= factors[b]
