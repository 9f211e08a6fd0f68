"""Weights as windows of a bit stream (`lowbit.codes.trellis`), on the GPU.

Steps of b bits are stored first to last, and the newest is the lowest digit of a state. So a thread takes the bits of
S steps and of those before them, reverses their digits once, and every state is a shift and a mask:

    window = digits of step t + S - 1, ..., t, t - 1, ...,     state of step t + j = (window >> b (S - 1 - j)) mod 2^L

A group of S steps never leaves its column (S divides the steps of a column), so blocks of any tile are rows times
columns. In the order of a tensor core's fragments (EXL3) S is 1, and each weight takes a window of its own. Where a
group has 32 bits and tiles are whole words, it is one aligned load, and neighbouring threads read neighbouring words:
the stream is read once, in order. Operations a weight at 2 bits and L = 16: three for the reversal, two for the state,
nine for a sum of bytes, two to convert and scale. A table of 2^16 float32 fills the first-level cache of an H100 and
spills on smaller GPUs: 2^L is best kept at 2^14 there.

Not tried for want of a GPU: summing bytes by the dp4a instruction, which would take one operation for seven.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from lowbit.kernels.state_values import StateValues
from lowbit.kernels.triton.bits import bits_at, digits_reversed
from lowbit.kernels.triton.blocks import Packed

_ROWS, _COLUMNS = 128, 32
_WORD = 32


@dataclass(frozen=True)
class TrellisPlan:
    """Of a trellis with states of `length` bits, `bits` new ones and `dimension` weights a step.

    height, width: of a tile; a column of it takes whole steps. down, across: tiles. closed: the bits before
    a tile's first step are its last ones, not zeros. order: of a tile's weights along the path, down its columns or, in
    tiles of 16 x 16 and steps of one weight, a tensor core's. aligned: groups are aligned words of 32 bits.
    """

    values: StateValues
    length: int
    bits: int
    dimension: int
    height: int
    width: int
    down: int
    across: int
    closed: bool
    order: Literal["columns", "fragment"] = "columns"
    aligned: bool = False

    @property
    def group(self) -> int:
        """S: as many steps as 32 bits hold, a power of two that divides the steps of a column."""
        steps = self.height // self.dimension if self.order == "columns" else 1
        return min(1 << ((_WORD // self.bits).bit_length() - 1), steps & -steps)

    @property
    def past(self) -> int:
        """Steps before a group that are read with it: at least those that its first state remembers."""
        return self.group if self.aligned else -(-self.length // self.bits) - 1

    @property
    def digits(self) -> int:
        """Those of a window, a power of two."""
        return 1 << (self.past + self.group - 1).bit_length()

    @property
    def steps(self) -> int:
        """Of a tile."""
        return self.height * self.width // self.dimension

    @property
    def tile_nbytes(self) -> int:
        return -(-self.steps * self.bits // 8)

    @property
    def slack(self) -> int:
        """For `bits_at`: where in a byte a group may start."""
        return -1 if self.aligned else 8 - math.gcd(self.group * self.bits, 8)

    @property
    def past_slack(self) -> int:
        return -1 if self.aligned else 8 - math.gcd(self.bits, 8)

    @property
    def rows(self) -> int:
        return max(_ROWS, self.group * self.dimension)

    @property
    def columns(self) -> int:
        return _COLUMNS


def is_supported(dimension: int, height: int, order: Literal["columns", "fragment"]) -> bool:
    """Whether there are kernels for steps of so many weights in tiles of such a height and order."""
    if order == "fragment":
        return dimension == 1
    return dimension & (dimension - 1) == 0 and height % dimension == 0


def packed_trellis(
    codes: Tensor, scale: Tensor, shape: tuple[int, int], plan: TrellisPlan, table: Tensor | None = None
) -> Packed:
    """A layer [N, K] of tiles, each filled up to a byte. codes: uint8; scale: N numbers, or 1.

    table: [2^L, V], float32, for values of that kind. plan: whether it is aligned is found out here.
    """
    words = plan.group * plan.bits == _WORD and plan.tile_nbytes % 4 == 0 and codes.data_ptr() % 4 == 0
    stored = (codes, codes if table is None else table)
    return Packed(shape, decode, stored, replace(plan, aligned=words), scale)


@triton.jit
def decode(stored, top, left, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """See `lowbit.kernels.triton.blocks`."""
    codes, table = stored
    SPAN: tl.constexpr = plan.group * plan.dimension
    row = top + tl.arange(0, plan.rows // SPAN) * SPAN
    windows = _windows(codes, row[:, None], left + tl.arange(0, plan.columns)[None, :], plan)
    step = tl.arange(0, plan.group)[None, :, None]
    states = windows[:, None, :] >> ((plan.group - 1 - step) * plan.bits).to(tl.uint64)
    states = states.to(tl.uint32) & ((1 << plan.length) - 1)
    rows: tl.constexpr = plan.rows
    columns: tl.constexpr = plan.columns
    return tl.reshape(_values(table, states[:, :, None, :], plan), [rows, columns])


@triton.jit
def _windows(codes, row, column, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """The windows, uint64 [groups, columns], of the groups that begin at `row` [groups, 1] in `column` [1, columns]."""
    row = tl.minimum(row, plan.down * plan.height - 1)
    column = tl.minimum(column, plan.across * plan.width - 1)
    tile = row // plan.height * plan.across + column // plan.width
    if plan.order == "columns":
        step = (column % plan.width * plan.height + row % plan.height) // plan.dimension
    else:
        lane = row % 8 * 4 + column // 2 % 4
        step = lane * 8 + row // 8 % 2 * 4 + column // 8 % 2 * 2 + column % 2
    stream = codes + tile.to(tl.int64) * plan.tile_nbytes
    end: tl.constexpr = plan.steps * plan.bits
    window = bits_at(stream, step * plan.bits, end, plan.group * plan.bits, plan.slack)
    if plan.past > 0:
        window = _past(stream, step, plan) | (window << (plan.past * plan.bits))
    spare: tl.constexpr = plan.digits - plan.past - plan.group
    return digits_reversed(window << (spare * plan.bits), plan.bits, plan.digits)


@triton.jit
def _past(stream, step, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """The bits of the steps before `step`, plan.past of them: before the first one come the last ones, or zeros."""
    end: tl.constexpr = plan.steps * plan.bits
    count: tl.constexpr = plan.past * plan.bits
    start = (step - plan.past) * plan.bits
    past = bits_at(stream, tl.where(start < 0, start + end, start), end, count, plan.past_slack)
    if not plan.closed:
        past = tl.where(start < 0, 0, past)
    if plan.group < plan.past:
        # Some of these steps may lie at the tile's end and some at its beginning.
        begun = bits_at(stream, step * 0, end, count, 0) << tl.maximum(-start, 0).to(tl.uint64)
        past |= tl.where(start < 0, begun, 0) & ((1 << count) - 1)
    return past


@triton.jit
def _values(table, state, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 [groups, S, V, columns] of states [groups, S, 1, columns]."""
    if plan.values.kind == "table":
        lane = tl.arange(0, plan.dimension)[None, None, :, None]
        values = tl.load(table + state * plan.dimension + lane)
    else:
        word = state * plan.values.multiplier + plan.values.increment
        if plan.values.kind == "byte sum":
            pairs = (word & 0x00FF00FF) + ((word >> 8) & 0x00FF00FF)
            values = ((pairs & 0xFFFF) + (pairs >> 16)).to(tl.float32) - 510.0
        else:
            word = (word & 0x8FFF8FFF) ^ 0x3B603B60
            low = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
            high = (word >> 16).to(tl.uint16).to(tl.float16, bitcast=True)
            if plan.values.kind == "half sum":
                values = low.to(tl.float32) + high.to(tl.float32)
            else:
                values = (low + high).to(tl.float32)
        values = values / plan.values.unit + plan.values.offset
    return values
