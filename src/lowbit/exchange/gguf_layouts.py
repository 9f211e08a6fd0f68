"""How a GGUF block lays its numbers out in bytes: a list of pieces, each of which packs and unpacks some fields.

Fields of B blocks of w columns in S groups, by name:

    codes [B, w]              uint8, from 0 on
    step, minimum [B, S]      uint8, whole numbers as `codes.superblocks` stores them
    step_unit, minimum_unit   [B, 1] float16

Pieces that hold some bits of the codes each give what they have, and `unpack` puts it together. Source: llama.cpp's
ggml-quants and the reader of the package gguf.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Fields = Mapping[str, Tensor]


class Piece(Protocol):
    @property
    def nbytes(self) -> int: ...

    def pack(self, fields: Fields) -> Tensor:
        """uint8 [B, nbytes]."""
        ...

    def unpack(self, data: Tensor) -> Fields:
        """What uint8 [B, nbytes] says of the fields."""
        ...


def pack(pieces: Sequence[Piece], fields: Fields) -> Tensor:
    """The blocks, uint8 [B, bytes]."""
    return torch.cat([piece.pack(fields) for piece in pieces], 1)


def unpack(pieces: Sequence[Piece], data: Tensor) -> dict[str, Tensor]:
    """The fields of blocks, uint8 [B, bytes]."""
    fields: dict[str, Tensor] = {}
    start = 0
    for piece in pieces:
        for name, found in piece.unpack(data[:, start : start + piece.nbytes].contiguous()).items():
            fields[name] = fields[name] | found if name in fields else found
        start += piece.nbytes
    return fields


@dataclass(frozen=True)
class Half:
    """A float16; negative: the field with its sign turned."""

    field: str
    negative: bool = False
    nbytes = 2

    def pack(self, fields: Fields) -> Tensor:
        value = fields[self.field]
        return (-value if self.negative else value).contiguous().view(torch.uint8)

    def unpack(self, data: Tensor) -> Fields:
        value = data.view(torch.float16)
        return {self.field: -value if self.negative else value}


@dataclass(frozen=True)
class Bytes:
    """A byte each, in two's complement of what is stored less 128."""

    field: str
    nbytes: int

    def pack(self, fields: Fields) -> Tensor:
        return fields[self.field] ^ 128

    def unpack(self, data: Tensor) -> Fields:
        return {self.field: data ^ 128}


@dataclass(frozen=True)
class Folded:
    """Bits `shift` to `shift + bits - 1` of the codes [B, heads, J, L] as bytes [B, heads, L], J = 8 / bits of each."""

    heads: int
    bits: int
    nbytes: int
    shift: int = 0

    @property
    def per_byte(self) -> int:
        return 8 // self.bits

    def pack(self, fields: Fields) -> Tensor:
        parts = (fields["codes"] >> self.shift & (1 << self.bits) - 1).view(-1, self.heads, self.per_byte, self._length)
        return _packed(parts, self.bits).reshape(-1, self.nbytes)

    def unpack(self, data: Tensor) -> Fields:
        parts = _unpacked(data.view(-1, self.heads, self._length), self.bits, self.per_byte)
        return {"codes": parts.reshape(len(data), -1) << self.shift}

    @property
    def _length(self) -> int:
        return self.nbytes // self.heads


class StepsAndMinima4:
    """Sixteen steps and minima of 4 bits."""

    nbytes = 16

    def pack(self, fields: Fields) -> Tensor:
        return fields["step"] | fields["minimum"] << 4

    def unpack(self, data: Tensor) -> Fields:
        return {"step": data & 15, "minimum": data >> 4}


class StepsAndMinima6:
    """Eight steps and minima of 6 bits: the first four of both, each with 2 bits of a last one above, and what is left
    of the last four."""

    nbytes = 12

    def pack(self, fields: Fields) -> Tensor:
        step, minimum = fields["step"], fields["minimum"]
        first = [part[:, :4] | part[:, 4:] >> 4 << 6 for part in (step, minimum)]
        return torch.cat([*first, step[:, 4:] & 15 | minimum[:, 4:] << 4], 1)

    def unpack(self, data: Tensor) -> Fields:
        step, minimum, rest = data[:, :4], data[:, 4:8], data[:, 8:]
        return {
            "step": torch.cat([step & 63, rest & 15 | step >> 6 << 4], 1),
            "minimum": torch.cat([minimum & 63, rest >> 4 | minimum >> 6 << 4], 1),
        }


class Steps6:
    """Sixteen steps of 6 bits: the lower 4 of each, then the upper 2."""

    nbytes = 12

    def pack(self, fields: Fields) -> Tensor:
        step = fields["step"]
        return torch.cat([_packed((step & 15).view(-1, 2, 8), 4), _packed((step >> 4).view(-1, 4, 4), 2)], 1)

    def unpack(self, data: Tensor) -> Fields:
        lower, upper = (_unpacked(part, bits, 8 // bits) for part, bits in ((data[:, :8], 4), (data[:, 8:], 2)))
        return {"step": lower.reshape(-1, 16) | upper.reshape(-1, 16) << 4}


def _packed(parts: Tensor, bits: int) -> Tensor:
    """parts [..., J, L] of so many bits as bytes [..., L], the J-th shifted by J bits."""
    folded = torch.zeros_like(parts[..., 0, :])
    for place in range(parts.shape[-2]):
        folded |= parts[..., place, :] << bits * place
    return folded


def _unpacked(data: Tensor, bits: int, per_byte: int) -> Tensor:
    """bytes [..., L] as parts [..., J, L]."""
    return torch.stack([data >> bits * place & (1 << bits) - 1 for place in range(per_byte)], -2)
