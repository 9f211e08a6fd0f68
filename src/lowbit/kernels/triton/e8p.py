"""E8P words (`lowbit.codes.e8p`) on the GPU: eight weights of two to four bytes, and a table of 1 KiB.

    word = signs * pattern +- 1/4

A pattern is 32 bits: for each coordinate three bits of twice its magnitude, and bit 31, set where the pattern's sum
is odd. The signs' eighth follows from parity. A third byte adds a point of the second stage, also 32 bits: eight halves
in two's complement of four bits; four bytes are two words. Both tables stay in the first-level cache. Operations a
weight: about nine for each word.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit.kernels.triton.bits import bits_at
from lowbit.kernels.triton.blocks import Packed

_ROWS, _COLUMNS = 64, 64


@dataclass(frozen=True)
class E8PPlan:
    """n, k: of the layer, 8 dividing k; bits: 2, 3 or 4; gain: of the second stage, whose values are divided by it."""

    n: int
    k: int
    bits: int
    gain: float

    @property
    def rows(self) -> int:
        return _ROWS

    @property
    def columns(self) -> int:
        return _COLUMNS


def packed_e8p(
    codes: Tensor, scale: Tensor, shape: tuple[int, int], bits: int, gain: float, tables: tuple[Tensor, Tensor]
) -> Packed:
    """A layer [N, K]. codes: uint8 [N K bits / 8]; scale: one number; tables: those of `tables`, on the same GPU."""
    return Packed(shape, decode, (codes, *tables), E8PPlan(*shape, bits, gain), scale)


def tables(words: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The patterns and the second stage's points, each int32 [256].

    words: [256 or more, 8], those of sign byte 0, in the order of patterns, first. points: [256, 8].
    """
    signed = words[:256] - 0.25
    magnitudes, odd = (2 * signed.abs()).long(), (signed[:, 7] < 0).long()
    places = 4 * torch.arange(8)
    patterns = (magnitudes << places).sum(1) | odd << 31
    return _as_int32(patterns), _as_int32((((2 * points).long() & 15) << places).sum(1))


def _as_int32(unsigned: Tensor) -> Tensor:
    return torch.where(unsigned < 1 << 31, unsigned, unsigned - (1 << 32)).to(torch.int32)


@triton.jit
def decode(stored, top, left, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """See `lowbit.kernels.triton.blocks`."""
    codes, patterns, points = stored
    row = tl.minimum(top + tl.arange(0, plan.rows), plan.n - 1)[:, None]
    word = tl.minimum(left // 8 + tl.arange(0, plan.columns // 8), plan.k // 8 - 1)[None, :]
    stream = codes + (row.to(tl.int64) * (plan.k // 8) + word) * plan.bits
    code = bits_at(stream, (row + word) * 0, 8 * plan.bits, 8 * plan.bits, 0).to(tl.uint32)
    place = tl.arange(0, 8).to(tl.uint32)[None, None, :]
    values = _words(patterns, code, place)
    if plan.bits == 3:
        halves = tl.load(points + (code >> 16))[:, :, None] << (28 - 4 * place.to(tl.int32))
        values += (halves >> 28).to(tl.float32) * (0.5 / plan.gain)
    if plan.bits == 4:
        values += _words(patterns, code >> 16, place) / plan.gain
    rows: tl.constexpr = plan.rows
    columns: tl.constexpr = plan.columns
    return tl.reshape(values, [rows, columns])


@triton.jit
def _words(patterns, code, place):  # type: ignore[no-untyped-def]
    """float32 [rows, words, 8] of codes [rows, words]: the pattern in the lowest byte, the signs in the next."""
    pattern = tl.load(patterns + (code & 255)).to(tl.uint32, bitcast=True)
    signs = (code >> 8) & 127
    parity = signs ^ (signs >> 4)
    parity ^= parity >> 2
    parity = (parity ^ (parity >> 1)) & 1
    signs |= (parity ^ (pattern >> 31)) << 7
    size = ((pattern[:, :, None] >> (4 * place)) & 7).to(tl.float32) * 0.5
    shift = 0.25 - 0.5 * ((code >> 15) & 1).to(tl.float32)
    negative = (signs[:, :, None] >> place) & 1
    return tl.where(negative == 0, size, -size) + shift[:, :, None]
