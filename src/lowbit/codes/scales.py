"""How the scales of groups are stored: as floats, as powers of two, or as small numbers times a larger scale.

    float16, bfloat16, float32   one number a group
    e8m0                         2^(q - 127), 8 bits (OCP Microscaling)
    e4m3                         an 8-bit float (NVFP4), alone or times an outer scale
    uint4, uint6, uint8          a whole number from 1 on times an outer scale

An outer scale is one float16 a row or one float32 for the layer, so large that the largest group reaches the top of
the small type. Only the floats and e4m3 can be negative, and are then stored as "signed_step": a "scale" is positive.

Bits per weight: those of the type over the group size, and 16 / K or 32 / (N K) for an outer scale.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.codes.lookup import working
from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.records import Side

_FLOATS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
}
_INTEGERS = {"uint4": 4, "uint6": 6, "uint8": 8}
_OUTER = {"row": torch.float16, "tensor": torch.float32}
# The least number above zero of the types whose subnormal numbers are used.
_SUBNORMAL = {"float16": 2.0**-24, "e4m3": 2.0**-9}
_EXPONENT_BIAS = 127


@dataclass(frozen=True)
class Scales:
    """kind: of a group's number, see above. outer: what it multiplies; "none" for the floats and e8m0."""

    kind: Literal["float16", "bfloat16", "float32", "e4m3", "e8m0", "uint4", "uint6", "uint8"] = "float16"
    outer: Literal["none", "row", "tensor"] = "none"

    def __post_init__(self) -> None:
        kinds = (*_FLOATS, "e8m0", *_INTEGERS)
        require(self.kind in kinds, f"Scales(kind={self.kind!r}): must be one of {', '.join(kinds)}.")
        require(self.outer in ("none", *_OUTER), f'Scales(outer={self.outer!r}): must be "none", "row" or "tensor".')
        require(
            self.outer == "none" or self.kind == "e4m3" or self.kind in _INTEGERS,
            f"Scales({self.kind!r}, outer={self.outer!r}): needs no outer scale. Use e4m3 or uint8 with it.",
        )
        require(
            self.outer != "none" or self.kind not in _INTEGERS,
            f'Scales({self.kind!r}): whole numbers need an outer scale. Use outer="row".',
        )

    @property
    def signed(self) -> bool:
        return self.kind in _FLOATS

    def fields(self, rows: int, groups: int, turning: bool = False) -> dict[str, Field]:
        """turning: some may be negative."""
        if self.kind == "e8m0":
            return {"scale_exponent": Bits((rows, groups), 8)}
        if self.outer == "none":
            return {self._name(turning): Array((rows, groups), _FLOATS[self.kind])}
        shape = (rows, 1) if self.outer == "row" else (1, 1)
        small: Field = (
            Bits((rows, groups), _INTEGERS[self.kind])
            if self.kind in _INTEGERS
            else Array((rows, groups), _FLOATS[self.kind])
        )
        return {self._name(turning): small, "scale": Array(shape, _OUTER[self.outer])}

    def unit(self, wanted: Tensor) -> Tensor | None:
        """The outer scale, as stored, for the scales [R, G] that groups would like: [R or 1, 1], or None."""
        if self.outer == "none":
            return None
        largest = wanted.abs().amax(dim=1, keepdim=True)
        largest = largest if self.outer == "row" else largest.amax(dim=0, keepdim=True)
        dtype = _OUTER[self.outer]
        least = _SUBNORMAL["float16"] if dtype == torch.float16 else torch.finfo(dtype).tiny
        return (largest / self._top).to(dtype).to(wanted.dtype).clamp_min(least)

    def rounded(self, scale: Tensor) -> Tensor:
        """The storable number nearest to a group's, in units of the outer scale; never zero."""
        if self.kind == "e8m0":
            # The power of two below 3/2 of it: for E2M1, whose largest level is 6, the one that OCP prescribes.
            exponent = torch.frexp(1.5 * scale.clamp_min(torch.finfo(scale.dtype).tiny))[1] - 1
            return torch.ldexp(torch.ones_like(scale), exponent.clamp(-126, 127))
        if self.kind in _INTEGERS:
            return scale.round().clamp(1, self._top)
        dtype = _FLOATS[self.kind]
        least = _SUBNORMAL.get(self.kind, torch.finfo(dtype).tiny)
        size = scale.abs()
        size = size.clamp_max(self._top) if self.kind == "e4m3" else size
        return size.to(dtype).to(scale.dtype).clamp_min(least).copysign(scale)

    def side(self, scale: Tensor, unit: Tensor | None, turning: bool = False) -> Side:
        """What is kept of rounded scales [R, G]."""
        if self.kind == "e8m0":
            return {"scale_exponent": scale.log2() + _EXPONENT_BIAS}
        return {self._name(turning): scale, **({} if unit is None else {"scale": unit})}

    def of(self, side: Side, at: Tensor) -> Tensor:
        """The scales [R, G'] of the groups `at`, as they multiply levels."""
        if self.kind == "e8m0":
            exponent = side["scale_exponent"][:, at]
            powers = torch.ldexp(
                working(exponent).new_ones(256), torch.arange(256, device=exponent.device) - _EXPONENT_BIAS
            )
            return powers[exponent.int()]
        small = working(side[self._name("signed_step" in side)])[:, at]
        return small if self.outer == "none" else working(side["scale"]) * small

    def _name(self, turning: bool) -> str:
        """The field of the groups' numbers."""
        if turning:
            return "signed_step"
        return "scale" if self.outer == "none" else "group_scale"

    @property
    def _top(self) -> float:
        return float(2 ** _INTEGERS[self.kind] - 1) if self.kind in _INTEGERS else 448.0
