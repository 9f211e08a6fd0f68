"""Decoding to a dense matrix, and multiplying by packed weights, whatever their code.

    y[t, r] = scale[r] sum over c of block[r, c] x[t, c]

A code is a device function `decode(stored, top, left, plan)`, which gives the block [plan.rows, plan.columns] of values
from row `top` and column `left` on; rows and columns beyond the layer may hold any finite number. `dense` stores
blocks. `product` multiplies them, as soon as they are decoded, by up to 16 tokens on the tensor cores, where one token
costs as much as 16; columns are split among programs, whose sums are added in a fixed order, so that the same input
always gives the same output.

Bound by: for a few tokens, reading N K bits / 8 bytes; by arithmetic where decoding a weight takes more operations
than the GPU has for each of them in that time, a dozen at 2 bits. `benchmarks/decode_gpu.py` shows which. Not measured
for want of a GPU: the block sizes of the plans, _PROGRAMS, four warps a program.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_TOKENS = 16
"""In one product: a tensor core's tile has 16 anyway, and more would not fit in registers beside the block."""

# Enough programs to fill a hundred-odd multiprocessors a few times, where the columns allow it.
_PROGRAMS = 512
# Blocks of columns that a program should go through at least, to pay for writing its sums.
_FEWEST_BLOCKS = 4


class Plan(Protocol):
    """What a decode function is compiled for: a frozen dataclass. rows, columns: of its blocks, powers of two >= 16."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer [N, K] as stored.

    decode: device function, see above; stored: the tensors it reads, on one GPU, and plan what it is compiled for.
    scale: floating point, contiguous, N or 1 numbers that multiply the rows of what `decode` gives; None for ones.
    factors: likewise [N, B], of blocks of K / B columns.
    """

    shape: tuple[int, int]
    decode: Any
    stored: tuple[Tensor, ...]
    plan: Plan
    scale: Tensor | None
    factors: Tensor | None = None

    @property
    def block(self) -> int:
        """Columns that share a factor; 0 where there are none."""
        return 0 if self.factors is None else self.shape[1] // self.factors.shape[1]

    @property
    def device(self) -> torch.device:
        return self.stored[0].device

    @property
    def scale_stride(self) -> int:
        return 0 if self.scale is None or self.scale.numel() == 1 else 1


def dense(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values [N, K] in a floating-point type."""
    (n, k), plan = packed.shape, packed.plan
    out = torch.empty((n, k), dtype=dtype, device=packed.device)
    grid = triton.cdiv(n, plan.rows), triton.cdiv(k, plan.columns)
    side = packed.scale, packed.factors
    _dense[grid](packed.stored, side, out, n, k, packed.decode, plan, packed.scale_stride, packed.block)
    return out


def product(packed: Packed, x: Tensor) -> Tensor:
    """x [T, K], float16, bfloat16 or float32, T <= MOST_TOKENS, times the transposed values: [T, N] in x's type.

    Values are rounded to x's type before they are multiplied, but for their scale; sums are float32.
    """
    (n, k), plan, tokens = packed.shape, packed.plan, len(x)
    down, blocks = triton.cdiv(n, plan.rows), triton.cdiv(k, plan.columns)
    splits = max(1, min(_PROGRAMS // down, blocks // _FEWEST_BLOCKS))
    each = triton.cdiv(blocks, splits)
    sums = torch.empty((splits, tokens, n), dtype=torch.float32, device=x.device)
    _product[(down, splits)](
        packed.stored, (packed.scale, packed.factors), x.contiguous(), sums, n, k, tokens, each, packed.decode, plan,
        packed.scale_stride, packed.block,
    )  # fmt: skip
    return (sums[0] if splits == 1 else sums.sum(0)).to(x.dtype)


@triton.jit
def _scales(scale, row, n, STRIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The scales of rows [R] as [R, 1]; ones where there are none."""
    if scale is None:
        scales = tl.zeros_like(row).to(tl.float32) + 1
    else:
        scales = tl.load(scale + tl.minimum(row, n - 1) * STRIDE).to(tl.float32)
    return scales[:, None]


@triton.jit
def _values(stored, factors, top, left, n, k, decode: tl.constexpr, plan: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The block of values at a place, without the scales of rows."""
    values = decode(stored, top, left, plan)
    if BLOCK > 0:
        row = tl.minimum(top + tl.arange(0, plan.rows), n - 1)[:, None].to(tl.int64)
        column = tl.minimum(left + tl.arange(0, plan.columns), k - 1)[None, :]
        values *= tl.load(factors + row * (k // BLOCK) + column // BLOCK)
    return values


@triton.jit
def _dense(  # type: ignore[no-untyped-def]
    stored, side, out, n, k, decode: tl.constexpr, plan: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr
):
    scale, factors = side
    top, left = tl.program_id(0) * plan.rows, tl.program_id(1) * plan.columns
    row, column = top + tl.arange(0, plan.rows), left + tl.arange(0, plan.columns)
    values = _values(stored, factors, top, left, n, k, decode, plan, BLOCK) * _scales(scale, row, n, STRIDE)
    at = row[:, None].to(tl.int64) * k + column[None, :]
    tl.store(out + at, values.to(out.dtype.element_ty), mask=(row < n)[:, None] & (column < k)[None, :])


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    stored, side, x, sums, n, k, tokens, each,
    decode: tl.constexpr, plan: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    scale, factors = side
    top = tl.program_id(0) * plan.rows
    row, token = top + tl.arange(0, plan.rows), tl.arange(0, 16)
    total = tl.zeros_like(row)[:, None].to(tl.float32) + tl.zeros_like(token)[None, :]
    start = tl.program_id(1) * each * plan.columns
    for left in range(start, tl.minimum(start + each * plan.columns, k), plan.columns):
        column = left + tl.arange(0, plan.columns)
        wanted = (token < tokens)[None, :] & (column < k)[:, None]
        activations = tl.load(x + token[None, :] * k + column[:, None], mask=wanted, other=0.0)
        values = _values(stored, factors, top, left, n, k, decode, plan, BLOCK).to(x.dtype.element_ty)
        total = tl.dot(values, activations, total, input_precision="ieee")
    total *= _scales(scale, row, n, STRIDE)
    at = (tl.program_id(1) * tokens + token[None, :]) * n + row[:, None]
    tl.store(sums + at, total, mask=(row < n)[:, None] & (token < tokens)[None, :])
