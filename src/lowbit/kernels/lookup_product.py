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
from numba import literally  # type: ignore[attr-defined]
from torch import Tensor
from torch.nn.functional import pad

from lowbit.kernels.bit_streams import add_stream, put_word, set_stream
from lowbit.kernels.lookup_lanes import LANES, Span, look_up
from lowbit.kernels.processor import in_threads

_ANY_ORDER_OF_SUMS = {"reassoc", "contract", "nsz"}


class Codes(NamedTuple):
    """Where the codes of a layer [N, K] lie; all arrays numpy's.

    low: uint8 [N * S * bytes], for each row S streams of `low_bits` bits, one after the other; stream s holds the bits
    from s low_bits on. high: uint8 [N * bytes], a stream of `high_bits` bits, those above; 0 for none.
    digits: uint64 [256], the `per_byte` codes in a byte of the only stream, a byte each, where it is no stream of bits.
    loans: int64 [M, 2], first columns of spans of `span` columns: the topmost bit of the codes in the second span is
    the bit above that of the codes in the first.
    """

    rows: int
    low: np.ndarray
    low_bits: int
    streams: int
    high: np.ndarray
    high_bits: int
    digits: np.ndarray
    per_byte: int
    loans: np.ndarray
    span: int


class Levels(NamedTuple):
    """Tables of groups of columns, each `size` numbers long (16, 32, 64, 128 or 256).

    `terms` sets of levels times a number each are added up; group g of row r finds its sets from place
    r sets_row + g sets_group of `sets` on, and the numbers likewise. With no terms, a table is a clipped affine
    function of the code, of five numbers: s (k clip(code - z, low, high)).
    sets, numbers: float32, flat. group: the columns of a group.
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
    (rows, streams, _), over = low.shape, low.new_empty(0) if high is None else high
    low, over = low.contiguous().view(-1), over.contiguous().view(-1)
    return Codes(rows, low.numpy(), low_bits, streams, over.numpy(), high_bits, _NO_DIGITS, 0, _NO_LOANS, 0)


def exchanged_codes(low: Tensor, loans: Tensor, span: int) -> Codes:
    """Codes in planes of one bit, uint8 [N, S, bytes]; loans: int64 [M, 2], see `Codes`."""
    return plane_codes(low, 1)._replace(loans=loans.numpy(), span=span)


def digit_codes(packed: Tensor, base: int, per_byte: int) -> Codes:
    """Codes as digits of a base, the first lowest, in the bytes of uint8 [N, 1, bytes]."""
    digits = (np.arange(256)[:, None] // base ** np.arange(8) % base).astype(np.uint8)
    return plane_codes(packed, 8)._replace(digits=digits.view(np.uint64)[:, 0], per_byte=per_byte)


_NO_DIGITS, _NO_LOANS = np.empty(0, np.uint64), np.empty((0, 2), np.int64)


def levels(sets: Tensor, numbers: Tensor, group: int) -> Levels:
    """sets: float32 [R or 1, G or 1, terms, L], L <= 256, by code; numbers: float32 [R or 1, G or 1, terms or 5]."""
    count, terms = sets.shape[3], sets.shape[2]
    size = max(LANES, 1 << (count - 1).bit_length())
    # A set that is shorter than a vector is read with what comes after it, which no code reaches.
    filled = pad(sets, (0, size - count)) if terms > 1 else sets
    flat = pad(filled.reshape(-1), (0, size))
    row, step = _steps(filled)
    return Levels(flat.numpy(), size, row, step, _flat(numbers), *_steps(numbers), terms, group)


def _flat(numbers: Tensor) -> np.ndarray:
    return numbers.contiguous().view(-1).numpy()


@dataclass(frozen=True, eq=False)
class PackedLookup:
    """Rows of a layer as stored. columns: K; blocks: float32 [N, B], factors of blocks of K / B columns each."""

    codes: Codes
    levels: Levels
    columns: int
    blocks: Tensor | None = None

    def decode(self) -> Tensor:
        """The values, float32 [N, K]."""
        values = torch.empty(self.codes.rows, self.columns)
        arrays = self.codes, self.levels, factors(self.blocks), values.numpy()
        in_threads(lambda first, last: _decode(first, last, *arrays), len(values), values.numel())
        return values

    def product(self, x: Tensor) -> Tensor:
        """x [T, K], float32, on the CPU, times the transposed values: [T, N]; for a few tokens."""
        out = torch.empty(len(x), self.codes.rows)
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
            scale_blocks(blocks[r], k, buffers[2])
        values[r] = buffers[2][:k]


@numba.njit(nogil=True, cache=True)
def _product(first, last, codes, levels, blocks, x, out):  # type: ignore[no-untyped-def]
    k = x.shape[1]
    buffers = row_buffers(k)
    for r in range(first, last):
        fill_row(codes, levels, r, k, buffers)
        if len(blocks):
            scale_blocks(blocks[r], k, buffers[2])
        for t in range(len(x)):
            out[t, r] = dot(buffers[2], x[t])


@numba.njit(nogil=True, cache=True)
def row_buffers(k):  # type: ignore[no-untyped-def]
    """For a row's codes, a byte each, as uint64 words and as bytes, and for its values, float32; both a vector longer
    than needed."""
    held = np.zeros(k // 8 + LANES, np.uint64)
    return held, held.view(np.uint8), np.empty(k + LANES, np.float32)


@numba.njit(nogil=True, cache=True)
def fill_row(codes, levels, r, k, buffers):  # type: ignore[no-untyped-def]
    """The codes and the values of row r."""
    held, row, values = buffers
    read_codes(codes, r, k, held, row)
    look_up_row(levels, r, k, row, values)


@numba.njit(nogil=True, cache=True)
def look_up_row(levels, r, k, row, values):  # type: ignore[no-untyped-def]
    """The values of codes `row`, a byte each, in the tables of row r; both arrays as `row_buffers` makes them."""
    if levels.size == 16:
        _look_up_groups(16, levels, r, k, row, values)
    elif levels.size == 32:
        _look_up_groups(32, levels, r, k, row, values)
    elif levels.size == 64:
        _look_up_groups(64, levels, r, k, row, values)
    elif levels.size == 128:
        _look_up_groups(128, levels, r, k, row, values)
    else:
        _look_up_groups(256, levels, r, k, row, values)


@numba.njit(nogil=True, cache=True, fastmath=_ANY_ORDER_OF_SUMS)
def dot(values, x):  # type: ignore[no-untyped-def]
    """The sum of values[i] * x[i], for i below the length of x."""
    total = np.float32(0)
    for i in range(np.uint64(len(x))):
        total += values[i] * x[i]
    return total


@numba.njit(nogil=True, cache=True)
def read_codes(codes, r, k, held, row):  # type: ignore[no-untyped-def]
    """The codes of row r as the first bytes of `row`, which are the words `held`."""
    U = np.uint64
    if len(codes.digits):
        _read_digits(codes, len(codes.low) // codes.rows * r, k, row)
        return
    words, bits, size = U((k + 7) // 8), U(codes.low_bits), len(codes.low) // (codes.rows * codes.streams)
    set_stream(codes.low, U(r * codes.streams * size), bits, held, words)
    for s in range(1, codes.streams):
        add_stream(codes.low, U((r * codes.streams + s) * size), bits, U(s) * bits, held, words)
    if codes.high_bits:
        start = U(r * (len(codes.high) // codes.rows))
        add_stream(codes.high, start, U(codes.high_bits), U(codes.streams) * bits, held, words)
    top = np.uint8(1 << max(0, codes.streams * codes.low_bits - 1))
    for i in range(len(codes.loans)):
        _give_back(U(codes.loans[i, 0]), U(codes.loans[i, 1]), U(codes.span), top, row)


@numba.njit(nogil=True, cache=True)
def _read_digits(codes, start, k, row):  # type: ignore[no-untyped-def]
    """Eight bytes are written for each number, of which the next ones overwrite those that are no digits."""
    each = np.uint64(codes.per_byte)
    for i in range(np.uint64((k + codes.per_byte - 1) // codes.per_byte)):
        put_word(row, i * each, codes.digits[codes.low[np.uint64(start) + i]])  # type: ignore[call-arg]


@numba.njit(nogil=True, cache=True)
def _give_back(borrower, lender, span, top, row):  # type: ignore[no-untyped-def]
    """The topmost bits of a span of codes become the bits above those of another."""
    for c in range(span):
        lent = row[lender + c] & top
        row[borrower + c] |= lent << np.uint8(1)
        row[lender + c] ^= lent


@numba.njit(nogil=True, cache=True)
def _look_up_groups(size, levels, r, k, codes, row):  # type: ignore[no-untyped-def]
    """The values of row r, float32 [K + 16]; each group writes up to 15 places after it, which the next one mends."""
    literally(size)
    sets, numbers = levels.sets_row * r, levels.numbers_row * r
    for start in range(0, k, levels.group):
        span = Span(sets, numbers, levels.terms, start, start + levels.group)
        look_up(size, span, levels.sets, levels.numbers, codes, row)  # type: ignore[call-arg]
        sets, numbers = sets + levels.sets_group, numbers + levels.numbers_group


@numba.njit(nogil=True, cache=True)
def scale_blocks(factors, k, row):  # type: ignore[no-untyped-def]
    """Multiply the first k places of a row, in as many blocks as there are factors."""
    size = np.uint64(k // len(factors))
    for b in range(np.uint64(len(factors))):
        for c in range(b * size, (b + np.uint64(1)) * size):
            row[c] *= factors[b]
