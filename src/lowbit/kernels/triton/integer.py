"""Integer grids (`lowbit.kernels.integer_product`) on the GPU: s (q - z) from codes of 1 to 8 bits.

A thread takes the bits of S neighbouring codes of a row at once: an aligned word of 32 bits where they fill one and
rows are whole words, else 8 codes, which are as many bytes as a code has bits. Scales and zero points are read once
for each S codes where groups are multiples of them. Operations a weight: shift, mask, convert, subtract, multiply.
"""

from dataclasses import dataclass, replace

import triton
import triton.language as tl

from lowbit.kernels.integer_product import PackedGrid
from lowbit.kernels.triton.bits import bits_at
from lowbit.kernels.triton.blocks import Packed

_ROWS, _COLUMNS = 64, 64
_WORD = 32


@dataclass(frozen=True)
class GridPlan:
    """n, k: of the layer; groups: of columns that share scales; side_rows: N, or 1 with one scale for the layer.

    middle: all zero points, None where they are stored. whole: rows have one scale, which `decode` leaves out.
    aligned: rows of codes are whole, aligned words.
    """

    bits: int
    n: int
    k: int
    groups: int
    side_rows: int
    middle: float | None
    aligned: bool = False

    @property
    def codes(self) -> int:
        """S, taken at once."""
        return _WORD // self.bits if self.aligned else 8

    @property
    def slack(self) -> int:
        return -1 if self.aligned else 0

    @property
    def row_nbytes(self) -> int:
        return -(-self.k * self.bits // 8)

    @property
    def group_size(self) -> int:
        return self.k // self.groups

    @property
    def sides(self) -> int:
        """Scales for S codes: 1, or S where a group may end among them."""
        return 1 if self.groups == 1 or self.group_size % self.codes == 0 else self.codes

    @property
    def rows(self) -> int:
        return _ROWS

    @property
    def columns(self) -> int:
        return _COLUMNS


def packed_grid(grid: PackedGrid) -> Packed:
    """A layer on a grid, all its tensors on one GPU."""
    (side_rows, groups), n = grid.scale.shape, len(grid.codes)
    plan = GridPlan(grid.bits, n, grid.columns, groups, side_rows, None if grid.zero is not None else grid.middle)
    words = _WORD % grid.bits == 0 and plan.row_nbytes % 4 == 0 and grid.codes.data_ptr() % 4 == 0
    scale = grid.scale.contiguous()
    stored = (grid.codes, scale, grid.codes if grid.zero is None else grid.zero)
    rows_scale = scale if groups == 1 else None
    return Packed((n, grid.columns), decode, stored, replace(plan, aligned=words), rows_scale)


@triton.jit
def decode(stored, top, left, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """See `lowbit.kernels.triton.blocks`."""
    codes, scale, zero = stored
    S: tl.constexpr = plan.codes
    row = tl.minimum(top + tl.arange(0, plan.rows), plan.n - 1)[:, None]
    column = tl.minimum(left + tl.arange(0, plan.columns // S) * S, (plan.k - 1) // S * S)[None, :]
    stream = codes + row.to(tl.int64) * plan.row_nbytes
    words = bits_at(stream, column * plan.bits, plan.row_nbytes * 8, S * plan.bits, plan.slack)
    lane = tl.arange(0, S)
    shift = (lane * plan.bits).to(tl.uint64)[None, None, :]
    values = ((words[:, :, None] >> shift) & ((1 << plan.bits) - 1)).to(tl.float32)
    ends = column[:, :, None] + tl.arange(0, plan.sides)[None, None, :]
    side = tl.minimum(ends // plan.group_size, plan.groups - 1) + tl.zeros_like(row)[:, :, None]
    if plan.side_rows > 1:
        side += row[:, :, None] * plan.groups
    values -= _zeros(zero, side, plan)
    if plan.groups > 1:
        values *= tl.load(scale + side).to(tl.float32)
    rows: tl.constexpr = plan.rows
    columns: tl.constexpr = plan.columns
    return tl.reshape(values, [rows, columns])


@triton.jit
def _zeros(zero, side, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """The zero points of groups `side`, float32."""
    if plan.middle is None:
        end: tl.constexpr = plan.side_rows * plan.groups * plan.bits
        return bits_at(zero, side * plan.bits, end, plan.bits, 7).to(tl.float32)
    else:
        return tl.zeros_like(side).to(tl.float32) + plan.middle
