"""GGUF's block types, as far as they hold integers times one scale: which do, and how a block is laid out.

A type cuts rows into blocks of 32 or 256 columns with a float16 scale d each; the larger ones have sub-scales, which
are set to 1 here (zero points go where sub-minima are), so that a block decodes to d (q - z) without rounding:

    signed types    d v,  low <= v <= high                    Q4_0 Q5_0 Q8_0   Q3_K Q6_K
    unsigned types  d q - d z,  q < 2^b, z < 2^(4 or 6)       Q2_K Q4_K Q5_K

Layouts all fold a block's values [H, J, L] into bytes [H, L], J values a byte. Source: llama.cpp's ggml-quants and the
reader of the package gguf.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.exchange.format import as_float16
from lowbit.exchange.integers import Integers


@dataclass(frozen=True)
class BlockType:
    """A type of block.

    name: as gguf's enumeration has it. width: columns; nbytes: of a block. low, high: of the values that are stored,
    codes - zero where `signed`, else codes. pack: values less low [B, width], zero [B] and d as bytes [B, 2] to
    [B, nbytes].
    """

    name: str
    width: int
    nbytes: int
    low: int
    high: int
    signed: bool
    pack: Callable[[Tensor, Tensor, Tensor], Tensor]

    def holds(self, layer: Integers) -> bool:
        """Whether a layer, of which `objection` has nothing to say, fits exactly."""
        if layer.shape[1] % self.width or layer.grid.group_size % self.width:
            return False
        if not self.signed:
            return layer.bits <= self.high.bit_length()
        values = layer.signed()
        return int(values.min()) >= self.low and int(values.max()) <= self.high

    def blocks(self, layer: Integers) -> Tensor:
        """The layer's rows as bytes, uint8 [N, K / width * nbytes]."""
        n, k = layer.shape
        place = layer.group_of[:: self.width]
        values = layer.signed() - self.low if self.signed else layer.codes
        d = layer.scale[:, place].half().contiguous().view(torch.uint8).view(-1, 2)
        packed = self.pack(values.to(torch.uint8).reshape(-1, self.width), layer.zero[:, place].reshape(-1), d)
        return packed.view(n, k // self.width * self.nbytes)


def objection(layer: Integers) -> str | None:
    """Why no block type holds the layer; None where one does."""
    if not layer.grid.in_order:
        return "its groups hold columns that are not neighbours (act-order)"
    if layer.grid.group_size % 32:
        return f"its groups of {layer.grid.group_size} columns are not whole blocks of 32"
    if as_float16(layer.scale) is None:
        return f"its scales are {layer.scale.dtype} and do not fit float16"
    return (
        None if any(kind.holds(layer) for kind in BLOCK_TYPES) else "no block type reaches from its least to its most"
    )


def block_type(layer: Integers) -> BlockType:
    """The smallest block type that holds a layer to which there is no objection."""
    return next(kind for kind in BLOCK_TYPES if kind.holds(layer))


def _folded(values: Tensor, heads: int, per_byte: int, bits: int) -> Tensor:
    """values [B, H J L] of so many bits as bytes [B, H L], the J-th of each byte shifted by J bits."""
    parts = values.view(len(values), heads, per_byte, -1)
    folded = torch.zeros_like(parts[:, :, 0])
    for place in range(per_byte):
        folded |= parts[:, :, place] << bits * place
    return folded.reshape(len(values), -1)


def _constant(like: Tensor, *values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).expand(len(like), -1)


def _q4_0(v: Tensor, zero: Tensor, d: Tensor) -> Tensor:
    return torch.cat([d, _folded(v, 1, 2, 4)], 1)


def _q5_0(v: Tensor, zero: Tensor, d: Tensor) -> Tensor:
    return torch.cat([d, _folded(v >> 4, 4, 8, 1), _folded(v & 15, 1, 2, 4)], 1)


def _q8_0(v: Tensor, zero: Tensor, d: Tensor) -> Tensor:
    return torch.cat([d, v ^ 128], 1)  # from an offset of 128 to two's complement


def _q2_k(q: Tensor, zero: Tensor, d: Tensor) -> Tensor:
    scales = (1 | zero << 4)[:, None].expand(-1, 16)
    return torch.cat([scales, _folded(q, 2, 4, 2), d, d], 1)


def _q3_k(v: Tensor, zero: Tensor, d: Tensor) -> Tensor:
    scales = _constant(v, *[0x11] * 8, *[0xAA] * 4)  # sixteen times 33, which stands for 1
    return torch.cat([_folded(v >> 2, 1, 8, 1), _folded(v & 3, 2, 4, 2), scales, d], 1)


def _q4_k(q: Tensor, zero: Tensor, d: Tensor) -> Tensor:
    return torch.cat([d, d, _scales_and_minima(zero), _folded(q, 4, 2, 4)], 1)


def _q5_k(q: Tensor, zero: Tensor, d: Tensor) -> Tensor:
    return torch.cat([d, d, _scales_and_minima(zero), _folded(q >> 4, 1, 8, 1), _folded(q & 15, 4, 2, 4)], 1)


def _q6_k(v: Tensor, zero: Tensor, d: Tensor) -> Tensor:
    return torch.cat([_folded(v & 15, 2, 2, 4), _folded(v >> 4, 2, 4, 2), _constant(v, *[1] * 16), d], 1)


def _scales_and_minima(zero: Tensor) -> Tensor:
    """Eight scales of 1 and eight minima of `zero`, 6 bits each, the upper bits of the last four beside the first."""
    first, last = zero | zero >> 4 << 6, 1 | (zero & 15) << 4
    return torch.stack([torch.ones_like(zero), first, last], 1).repeat_interleave(4, 1)


BLOCK_TYPES = (
    BlockType("Q2_K", 256, 84, 0, 3, False, _q2_k),
    BlockType("Q3_K", 256, 110, -4, 3, True, _q3_k),
    BlockType("Q4_0", 32, 18, -8, 7, True, _q4_0),
    BlockType("Q4_K", 256, 144, 0, 15, False, _q4_k),
    BlockType("Q5_0", 32, 22, -16, 15, True, _q5_0),
    BlockType("Q5_K", 256, 176, 0, 31, False, _q5_k),
    BlockType("Q6_K", 256, 210, -32, 31, True, _q6_k),
    BlockType("Q8_0", 32, 34, -128, 127, True, _q8_0),
)
"""From the fewest bits per weight to the most."""
