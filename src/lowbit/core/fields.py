"""What one quantized layer stores, as data: a named field is an array of a type, or of integers of so many bits.

Every part that stores something declares its fields for a layer's shape. Bits per weight, the plan's sizes,
the writer, the reader and the legality check all follow from this one declaration, so they cannot disagree.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lowbit.core.errors import require


@dataclass(frozen=True)
class Array:
    """A plain tensor. shape: any; dtype: as stored."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Bits:
    """Unsigned integers of `bits` bits (1 to 32), packed densely; each row (last axis) starts at a byte."""

    shape: tuple[int, ...]
    bits: int

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 32, f"Bits(bits={self.bits}): must be 1 to 32.")

    @property
    def row_nbytes(self) -> int:
        return -(-self.shape[-1] * self.bits // 8)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_nbytes


Field = Array | Bits


def bits_per_weight(fields: Mapping[str, Field], shape: tuple[int, int]) -> float:
    """Everything stored for a layer, in bits, over the weights it stands for (shape [N, K])."""
    return 8 * sum(field.nbytes for field in fields.values()) / math.prod(shape)
