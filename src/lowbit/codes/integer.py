"""The integer grid: w = s (q - z) with q of b bits, one scale s and zero point z for each group of columns of a row.

    q = clamp(round(w / s) + z, 0, 2^b - 1)

Bits per weight: b + (16 + b) / g with float16 scales and b-bit zero points, b + 16 / g where symmetric; g is the
group size, the row length K for "row", N K for "tensor". Zero points are packed at b bits over the whole layer and a
row of codes is rounded up to a byte.

Papers: OPTQ (arXiv 2210.17323), section 4 and repository. Differs from its code: scales are rounded to the type they
are stored in before any weight is rounded, so what was optimised is what is loaded; a single symmetric bit stores
+-s/2 where theirs would store {-s, 0}.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.codes.groups import GroupSize, check_divides, check_group_size, group_of, side_shape
from lowbit.codes.ranges import Levels, MinMax, Range, _codes
from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side
from lowbit.kernels.integer import round_slab

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class IntegerGrid:
    """Integers of `bits` bits with affine side information.

    bits: 1 to 8. group_size: columns of a row that share a scale, or "row", or "tensor".
    symmetric: fixed zero point 2^(b-1), not stored. range: how a group's end points are found.
    scales: "dynamic" re-estimates a group from the error-compensated weights when a rounder reaches it (OPTQ's
    default), "static" keeps those of the original weights; the same for "row" and "tensor".
    scale_dtype: "float16", "bfloat16" or "float32", as stored.
    """

    bits: int = 4
    group_size: GroupSize = "row"
    symmetric: bool = False
    range: Range = MinMax()
    scales: Literal["dynamic", "static"] = "dynamic"
    scale_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    def __post_init__(self) -> None:
        require(isinstance(self.bits, int) and 1 <= self.bits <= 8, f"IntegerGrid(bits={self.bits!r}): must be 1 to 8.")
        check_group_size(self, self.group_size)
        require(
            self.scales in ("dynamic", "static"), f'IntegerGrid(scales={self.scales!r}): must be "dynamic" or "static".'
        )
        require(
            self.scale_dtype in _DTYPES,
            f"IntegerGrid(scale_dtype={self.scale_dtype!r}): must be one of {list(_DTYPES)}.",
        )

    tile = (1, 1)
    linear_in = ("scale",)

    @property
    def levels(self) -> Levels:
        return Levels(self.bits, self.symmetric, _DTYPES[self.scale_dtype])

    @property
    def refit_every(self) -> int:
        return self.group_size if isinstance(self.group_size, int) and self.scales == "dynamic" else 0

    def check(self, shape: tuple[int, int]) -> None:
        check_divides(self, self.group_size, shape)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        rows, groups = side_shape(self.group_size, shape)
        fields: dict[str, Field] = {
            "codes": Bits(shape, self.bits),
            "scale": Array((rows, groups), _DTYPES[self.scale_dtype]),
        }
        if not self.symmetric:
            fields["zero"] = Bits((rows * groups,), self.bits)
        return fields

    def fit(self, problem: LayerProblem) -> Side:
        rows, groups = side_shape(self.group_size, problem.shape)
        importance = self.range.importance(problem)
        scale, zero = self._fit_groups(problem.weight, importance, rows, groups)
        side = {"scale": scale, "zero": zero}
        return side if importance is None else {**side, "importance": importance}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        importance = side.get("importance")
        slab_importance = None if importance is None else importance[columns]
        rows, groups = side_shape(self.group_size, (target.shape[0], target.shape[1]))
        scale, zero = self._fit_groups(target, slab_importance, rows, groups)
        at = group_of(self.group_size, columns)[:: self.refit_every]
        new = {**side, "scale": side["scale"].clone(), "zero": side["zero"].clone()}
        new["scale"][:, at], new["zero"][:, at] = scale, zero
        return new

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero = self._side_of(side, columns)
        codes = _codes(target, scale, zero, self.levels.top)
        return codes.to(torch.uint8), scale * (codes - zero)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale, zero = self._side_of(side, columns)
        shape = target.shape
        return round_slab(weight, target, feedback, (scale.expand(shape), zero.expand(shape)), self.levels.top)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        scale = side["scale"].float() if side["scale"].dtype in (torch.float16, torch.bfloat16) else side["scale"]
        zero = (
            side["zero"].to(scale.dtype).view(scale.shape)
            if "zero" in side
            else torch.full_like(scale, self.levels.middle)
        )
        scale, zero = self._side_of({"scale": scale, "zero": zero}, columns)
        return scale * (codes.to(scale.dtype) - zero)

    def half_widths(self, side: Side, columns: Tensor) -> Tensor:
        return self._side_of(side, columns)[0] / 2

    def _fit_groups(self, weight: Tensor, importance: Tensor | None, rows: int, groups: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point, each [rows, groups], of weight [N, w]."""
        if importance is not None:
            importance = importance.expand_as(weight).reshape(rows * groups, -1)
        scale, zero = self.range.fit(weight.reshape(rows * groups, -1), importance, self.levels)
        require(
            bool(torch.isfinite(scale).all()),
            f'IntegerGrid(scale_dtype="{self.scale_dtype}"): weights up to {float(weight.abs().max()):g} need scales '
            'that this type cannot hold. Use "bfloat16" or "float32".',
        )
        return scale.view(rows, groups), zero.view(rows, groups)

    def _side_of(self, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each weight of a slab, broadcastable to [N, w]."""
        group = group_of(self.group_size, columns)
        return side["scale"][:, group], side["zero"][:, group]
