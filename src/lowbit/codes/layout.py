"""Codes laid out otherwise than one by one: the same values, other bytes.

    Planes     some bits of every code in one field, the rest in another: FP6 as 4 + 2, so that both parts stay aligned
    Digits     several codes of L levels as one number of base L: five of three levels in 8 bits, 1.6 bits a weight
    Exchanged  groups of b - 1, b and b + 1 bits in b planes: the plane that a narrow group leaves free holds the
               spare bits of a wide one, so that every layer takes b bits a weight whatever its groups do

Papers: ZeroQuant(4+2) (arXiv 2312.08583) and FP6-LLM (2401.14112) for 4 + 2; the exchange is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lowbit.codes.lookup import Lookup
from lowbit.core.errors import require
from lowbit.core.fields import Bits, Field
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side


@runtime_checkable
class Layout(Protocol):
    """Where the bits of codes go. The field "codes" is among the fields, in another shape than [N, K]."""

    def check(self, lookup: Lookup) -> None:
        """Raise BadRequest where a code's integers cannot be laid out so."""
        ...

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]: ...

    def store(self, codes: Tensor, side: Side) -> dict[str, Tensor]:
        """The fields of codes, uint8 [N, K]."""
        ...

    def load(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """The codes, uint8 [N, K]; tensors: the fields, side information among them."""
        ...


@dataclass(frozen=True)
class Planes:
    """low: bits of each code in the field "codes". high: those above, in "high_codes"."""

    low: int = 4
    high: int = 2

    def __post_init__(self) -> None:
        require(
            self.low >= 1 and self.high >= 1 and self.low + self.high <= 8,
            f"Planes(low={self.low}, high={self.high}): must be at least 1 each and at most 8 together.",
        )

    def check(self, lookup: Lookup) -> None:
        bits = lookup.tables.bits
        require(bits == self.low + self.high, f"Planes(low={self.low}, high={self.high}): the codes have {bits} bits.")

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        n, k = shape
        return {"codes": Bits((n, 1, k), self.low), "high_codes": Bits((n, 1, k), self.high)}

    def store(self, codes: Tensor, side: Side) -> dict[str, Tensor]:
        return {"codes": (codes & (1 << self.low) - 1)[:, None], "high_codes": (codes >> self.low)[:, None]}

    def load(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return (tensors["codes"] | tensors["high_codes"] << self.low).view(shape)


@dataclass(frozen=True)
class Digits:
    """levels: 3 to 15, the base; codes from there on are read as the last level. As many in a byte as fit."""

    levels: int = 3

    def __post_init__(self) -> None:
        require(3 <= self.levels <= 15, f"Digits(levels={self.levels}): must be 3 to 15.")

    @property
    def per_byte(self) -> int:
        return max(count for count in range(1, 9) if self.levels**count <= 256)

    def check(self, lookup: Lookup) -> None:
        bits = (self.levels - 1).bit_length()
        require(
            lookup.tables.bits == bits,
            f"Digits(levels={self.levels}): the codes have {lookup.tables.bits} bits, so many levels {bits}.",
        )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {"codes": Bits((shape[0], 1, -(-shape[1] // self.per_byte)), 8)}

    def store(self, codes: Tensor, side: Side) -> dict[str, Tensor]:
        filled = torch.nn.functional.pad(codes.clamp_max(self.levels - 1).int(), (0, -codes.shape[1] % self.per_byte))
        numbers = (filled.view(len(codes), -1, self.per_byte) * self._weights()).sum(-1)
        return {"codes": numbers.to(torch.uint8)[:, None]}

    def load(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        numbers = tensors["codes"].int().view(shape[0], -1, 1)
        digits = torch.div(numbers, self._weights(), rounding_mode="floor") % self.levels
        return digits.flatten(1)[:, : shape[1]].to(torch.uint8)

    def _weights(self) -> Tensor:
        return self.levels ** torch.arange(self.per_byte, dtype=torch.int32)


@dataclass(frozen=True)
class Exchanged:
    """bits: of the groups on average. Reads the side field "width" [G]: how many bits each group of columns has."""

    bits: int = 2

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 7, f"Exchanged(bits={self.bits}): must be 2 to 7.")

    def check(self, lookup: Lookup) -> None:
        bits = lookup.tables.bits
        require(
            bits == self.bits + 1 and "width" in lookup.tables.fields(1, 2),
            f"Exchanged(bits={self.bits}): needs tables that widths differ in, of {self.bits + 1} bits at most.",
        )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {"codes": Bits((shape[0], self.bits, shape[1]), 1)}

    def store(self, codes: Tensor, side: Side) -> dict[str, Tensor]:
        widths = side["width"].repeat_interleave(codes.shape[1] // len(side["width"]))
        codes = torch.minimum(codes, (2**widths - 1).to(torch.uint8))  # codes from there on are the last level
        planes = torch.stack([codes >> bit & 1 for bit in range(self.bits)], 1)
        spare = codes >> self.bits & 1
        for wide, narrow in self.partners(side["width"], codes.shape[1]):
            planes[:, -1, narrow] = spare[:, wide]
        return {"codes": planes}

    def load(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        planes = tensors["codes"].view(shape[0], self.bits, shape[1]).clone()
        spare = torch.zeros_like(planes[:, 0])
        for wide, narrow in self.partners(tensors["width"], shape[1]):
            spare[:, wide] = planes[:, -1, narrow]
            planes[:, -1, narrow] = 0
        codes = spare << self.bits
        for bit in range(self.bits):
            codes |= planes[:, bit] << bit
        return codes

    def partners(self, width: Tensor, columns: int) -> list[tuple[slice, slice]]:
        """The columns of each wide group, and of the narrow one that holds its spare bits."""
        size = columns // len(width)
        wide, narrow = (torch.nonzero(width == self.bits + step).flatten().tolist() for step in (1, -1))
        require(len(wide) == len(narrow), "Exchanged: there are not as many wide groups as narrow ones.")
        groups = [slice(start, start + size) for start in range(0, columns, size)]
        return [(groups[a], groups[b]) for a, b in zip(wide, narrow, strict=True)]


@dataclass(frozen=True)
class LaidOut:
    """code: whose integers are stored as `layout` says."""

    code: Lookup
    layout: Layout

    def __post_init__(self) -> None:
        self.layout.check(self.code)

    tile = (1, 1)

    @property
    def bits(self) -> int:
        return self.code.tables.bits

    @property
    def refit_every(self) -> int:
        return self.code.refit_every

    @property
    def linear_in(self) -> tuple[str, ...]:
        return self.code.linear_in

    def check(self, shape: tuple[int, int]) -> None:
        self.code.check(shape)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {**self.code.fields(shape), **self.layout.fields(shape)}

    def to_fields(self, codes: Tensor, side: Side) -> dict[str, Tensor]:
        return self.layout.store(codes, side)

    def from_fields(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return self.layout.load(tensors, shape)

    def fit(self, problem: LayerProblem) -> Side:
        return self.code.fit(problem)

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return self.code.refit(side, target, columns)

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        return self.code.encode(target, side, columns)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.code.encode_with_feedback(weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        return self.code.decode(codes, side, columns)

    def half_widths(self, side: Side, columns: Tensor) -> Tensor:
        return self.code.half_widths(side, columns)
