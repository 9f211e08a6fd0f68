"""Codes that are not stored one by one: as planes of bits, digits of another base, or with widths that differ.

A rounder deals in one integer a tile, whatever it takes to store them; a code that lays its integers out otherwise says
how, and everything that stores or reads codes asks here.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from lowbit.core.parts import Code
from lowbit.core.records import Side


@runtime_checkable
class Relaying(Protocol):
    """A code of single weights whose field "codes", alone or with others, holds something else than the codes.

    bits: of the codes themselves. The shape of the field "codes" differs from [N, K], so that none takes it for them.
    """

    @property
    def bits(self) -> int: ...

    def to_fields(self, codes: Tensor, side: Side) -> dict[str, Tensor]:
        """The fields that hold the codes [N, K] of a whole layer; codes that decode alike may become one."""
        ...

    def from_fields(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """The codes, uint8 [N, K], of the fields of a layer of that shape, side information among them."""
        ...


def codes_to_fields(code: Code, codes: Tensor, side: Side) -> dict[str, Tensor]:
    """The codes of a whole layer as they are stored, by field name."""
    return code.to_fields(codes, side) if isinstance(code, Relaying) else {"codes": codes}


def codes_from_fields(code: Code, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """The codes of a layer [N, K] from its fields."""
    return code.from_fields(tensors, shape) if isinstance(code, Relaying) else tensors["codes"]
