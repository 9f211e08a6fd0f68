"""Codes that look levels up (`lowbit.kernels.lookup_product`) on the GPU: streams of bits or digits, sums of tables.

A thread takes eight neighbouring codes of a row at once, which are as many bytes as a code has bits, from each of their
streams. Levels are gathered from sets of at most 256 numbers in the first-level cache, or computed where a table is a
clipped affine function of the code. Operations a weight: shift and mask for each stream, a gather and a multiply-add
for each term.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from lowbit.kernels.triton.bits import bits_at
from lowbit.kernels.triton.blocks import Packed

_ROWS, _COLUMNS = 64, 64


@dataclass(frozen=True)
class LookupPlan:
    """n, k: of the layer; group: columns that share a table; levels: L, of a set; terms: sets that are added up.

    streams, low_bits, high_bits: of codes in bits; base, per_byte: of codes in digits, 1 for bits. sets_row and the
    three after it: strides, 0 where they are shared.
    """

    n: int
    k: int
    group: int
    levels: int
    terms: int
    streams: int
    low_bits: int
    high_bits: int
    base: int
    per_byte: int
    sets_row: int
    sets_group: int
    numbers_row: int
    numbers_group: int

    @property
    def low_nbytes(self) -> int:
        """Of a row of a stream."""
        return -(-self.k // self.per_byte) if self.per_byte > 1 else -(-self.k * self.low_bits // 8)

    @property
    def high_nbytes(self) -> int:
        return -(-self.k * self.high_bits // 8)

    @property
    def rows(self) -> int:
        return _ROWS

    @property
    def columns(self) -> int:
        return _COLUMNS


@dataclass(frozen=True)
class Streams:
    """low: uint8 [N S bytes], high: uint8 [N bytes] where high_bits is not 0; the rest as in `LookupPlan`."""

    low: Tensor
    low_bits: int
    streams: int = 1
    high: Tensor | None = None
    high_bits: int = 0
    base: int = 1
    per_byte: int = 1


def packed_lookup(shape: tuple[int, int], codes: Streams, sets: Tensor, numbers: Tensor) -> Packed:
    """A layer [N, K] of codes whose tables are sums of terms, all its tensors on one GPU.

    sets: float32 [N or 1, G or 1, terms, L]; numbers: float32 [N or 1, G or 1, terms], or with no terms 5, see
    `lowbit.kernels.lookup_lanes.look_up`.
    """
    (n, k), groups = shape, max(sets.shape[1], numbers.shape[1])
    plan = LookupPlan(
        n, k, k // groups, sets.shape[3], sets.shape[2], codes.streams, codes.low_bits, codes.high_bits, codes.base,
        codes.per_byte, *_strides(sets), *_strides(numbers),
    )  # fmt: skip
    sets = numbers if sets.numel() == 0 else sets.contiguous()
    high = codes.low if codes.high is None else codes.high
    return Packed(shape, decode, (codes.low, high, sets, numbers.contiguous()), plan, None)


def _strides(tensor: Tensor) -> tuple[int, int]:
    rows, groups, each = tensor.shape[0], tensor.shape[1], tensor.shape[2:].numel()
    return (groups * each if rows > 1 else 0), (each if groups > 1 else 0)


@triton.jit
def decode(stored, top, left, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """See `lowbit.kernels.triton.blocks`."""
    low, high, sets, numbers = stored
    row = tl.minimum(top + tl.arange(0, plan.rows), plan.n - 1)[:, None].to(tl.int64)
    column = tl.minimum(left + tl.arange(0, plan.columns), plan.k - 1)[None, :]
    if plan.per_byte > 1:
        code = _digits(low + row * plan.low_nbytes, column, plan)
    else:
        code = _integers(low, row, left, plan.streams, plan.low_bits, plan.low_nbytes, plan)
        if plan.high_bits > 0:
            upper = _integers(high, row, left, 1, plan.high_bits, plan.high_nbytes, plan)
            code += upper << (plan.streams * plan.low_bits)
    group = column // plan.group
    number = numbers + row * plan.numbers_row + group * plan.numbers_group
    if plan.terms == 0:
        values = tl.maximum(code.to(tl.float32) - tl.load(number + 2), tl.load(number + 3))
        values = tl.load(number) * (tl.load(number + 1) * tl.minimum(values, tl.load(number + 4)))
    else:
        level = sets + row * plan.sets_row + group * plan.sets_group + code
        values = tl.load(number) * tl.load(level)
        terms: tl.constexpr = plan.terms
        for term in tl.static_range(1, terms):
            values += tl.load(number + term) * tl.load(level + term * plan.levels)
    return values


@triton.jit
def _integers(  # type: ignore[no-untyped-def]
    streams, row, left, COUNT: tl.constexpr, BITS: tl.constexpr, NBYTES: tl.constexpr, plan: tl.constexpr
):
    """Integers [rows, columns], int32, each with BITS bits in each of COUNT streams a row."""
    eight = tl.minimum(left // 8 + tl.arange(0, plan.columns // 8), (plan.k - 1) // 8)[None, :]
    shift = (tl.arange(0, 8) * BITS).to(tl.uint64)[None, None, :]
    rows: tl.constexpr = plan.rows
    columns: tl.constexpr = plan.columns
    code = tl.zeros([rows, columns], dtype=tl.int32)
    for s in tl.static_range(COUNT):
        words = bits_at(streams + (row * COUNT + s) * NBYTES, eight * 8 * BITS, NBYTES * 8, 8 * BITS, 0)
        part = (words[:, :, None] >> shift) & ((1 << BITS) - 1)
        code += tl.reshape(part.to(tl.int32), [rows, columns]) << (s * BITS)
    return code


@triton.jit
def _digits(stream, column, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """Digits [rows, columns] of base plan.base, the first lowest, of the bytes of a row."""
    number, place = tl.load(stream + column // plan.per_byte).to(tl.int32), column % plan.per_byte
    rounds: tl.constexpr = plan.per_byte - 1
    for i in tl.static_range(rounds):
        number = tl.where(place > i, number // plan.base, number)
    return number % plan.base
