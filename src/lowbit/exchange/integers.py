"""A layer as every tool's integer format sees it: codes, scales and zero points, columns in their own order.

    w[n, k] = scale[n, g] (codes[n, k] - zero[n, g]),    g = group_of[k]

lowbit stores columns in the order they were rounded in; here they are put back, and the order becomes `group_of`
(GPTQ's g_idx). Both ways are exact: only places change, no value does.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lowbit.codes import IntegerGrid, Lookup, ScaledLevels
from lowbit.core.errors import BadRequest, require
from lowbit.core.layer import QuantizedLayer, restore_layer
from lowbit.recipes import rtn
from lowbit.transforms import ActOrder

SCALE_TYPES: dict[torch.dtype, Literal["float16", "bfloat16", "float32"]] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}
"""The types that scales are stored in, and their names in a recipe."""


@dataclass(frozen=True)
class Grid:
    """What a format must know of a layer apart from its numbers. in_order: columns k and k' share a group where
    k // group_size = k' // group_size."""

    bits: int
    group_size: int
    groups: int
    symmetric: bool
    in_order: bool


@dataclass(frozen=True, eq=False)
class Integers:
    """codes: uint8 [N, K], below 2^bits; scale: [N, G] floating point, as stored; zero: uint8 [N, G], below 2^bits;
    group_of: int64 [K], each group of 0..G-1 K / G times."""

    bits: int
    codes: Tensor
    scale: Tensor
    zero: Tensor
    group_of: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def grid(self) -> Grid:
        groups = self.scale.shape[1]
        size = self.shape[1] // groups
        symmetric = bool((self.zero == 1 << (self.bits - 1)).all())
        in_order = torch.equal(self.group_of, torch.arange(self.shape[1]) // size)
        return Grid(self.bits, size, groups, symmetric, in_order)

    def signed(self) -> Tensor:
        """codes - zero, int16 [N, K]: the weights in units of their scale."""
        return self.codes.short() - self.zero[:, self.group_of].short()


def places(layer: QuantizedLayer) -> tuple[Tensor, Tensor]:
    """Which stored row each output is, int64 [N], and which input each stored column is, int64 [K].

    Raises BadRequest saying why where a layer is more than its codes, or they are of other coordinates.
    """
    (n, k), fitted = layer.shape, layer.transform
    require(
        layer.correction is None,
        f"it keeps something beside its codes ({type(layer.recipe.side_car).__name__}), for which there is no place",
    )
    require(
        fitted.left.is_permutation and fitted.right.is_permutation,
        f"its weights are stored in other coordinates ({type(layer.recipe.transform).__name__})",
    )
    return fitted.left.inverse().apply(torch.arange(n)), fitted.right.apply(torch.arange(k))


def integers_of(layer: QuantizedLayer) -> Integers:
    """The integers of a layer [N, K]; raises BadRequest saying why where it is not made of such."""
    code = layer.recipe.code_at(layer.shape)
    if isinstance(code, IntegerGrid):
        bits, codes, scale, zero = _of_grid(code, layer)
    elif isinstance(code, Lookup) and isinstance(code.tables, ScaledLevels) and _is_whole(code.tables):
        bits, codes, scale, zero = _of_signed(code.tables, layer)
    else:
        raise BadRequest(f"its codes are those of {type(code).__name__}, which are not integers times a scale")
    rows, order = places(layer)
    groups = layer.shape[1] // code.group_size if isinstance(code.group_size, int) else 1
    scale, zero = (part.expand(layer.shape[0], groups)[rows] for part in (scale, zero))
    back = order.argsort()
    group_of = (torch.arange(layer.shape[1]) // (layer.shape[1] // groups))[back]
    return Integers(bits, codes[rows][:, back], scale, zero, group_of)


def _of_grid(code: IntegerGrid, layer: QuantizedLayer) -> tuple[int, Tensor, Tensor, Tensor]:
    """Bits, codes [N, K], scales and zero points [N or 1, G] of an integer grid."""
    require(not (code.symmetric and code.bits == 1), "its zero point is one half, and no tool stores such")
    scale = layer.side["scale"].to(code.levels.scale_dtype)
    zero = torch.full(scale.shape, 1 << (code.bits - 1), dtype=torch.uint8)
    if not code.symmetric:
        zero = layer.side["zero"].view(scale.shape).to(torch.uint8)
    return code.bits, layer.codes, scale, zero


def _is_whole(tables: ScaledLevels) -> bool:
    """Whether the levels are all whole numbers of so many bits, under scales that are plain numbers."""
    plain = tables.scales.kind in SCALE_TYPES.values() and tables.scales.outer == "none"
    return plain and tables.levels in [f"int{bits}" for bits in range(2, 9)]


def _of_signed(tables: ScaledLevels, layer: QuantizedLayer) -> tuple[int, Tensor, Tensor, Tensor]:
    """The same of signed steps: where one is negative, codes count from the other end."""
    dtype = next(dtype for dtype, name in SCALE_TYPES.items() if name == tables.scales.kind)
    step = layer.side["signed_step"].to(dtype)
    top, turned = 2**tables.bits - 1, step < 0
    of_weights = turned.repeat_interleave(layer.shape[1] // step.shape[1], 1)
    codes = torch.where(of_weights, top - layer.codes.byte(), layer.codes.byte())
    zero = torch.full(step.shape, 1 << (tables.bits - 1), dtype=torch.uint8)
    return tables.bits, codes, step.abs(), torch.where(turned, top - zero, zero)


def layer_of(integers: Integers, origin: str) -> QuantizedLayer:
    """The layer of lowbit that stands for the same weights; origin: the recipe's name, for how it was made is unknown.

    Raises BadRequest where groups differ in size.
    """
    grid = integers.grid
    n, k = integers.shape
    counts = integers.group_of.bincount(minlength=grid.groups)
    require(
        bool((counts == grid.group_size).all()),
        f"its groups hold from {int(counts.min())} to {int(counts.max())} columns; lowbit's are all of one size",
    )
    plain = rtn(grid.bits, "row" if grid.groups == 1 else grid.group_size, grid.symmetric)
    assert isinstance(plain.code, IntegerGrid)
    code = replace(plain.code, scale_dtype=SCALE_TYPES[integers.scale.dtype])
    recipe = replace(plain, name=origin, code=code)
    if not grid.in_order:
        recipe = replace(recipe, transform=ActOrder())
    order = integers.group_of.argsort(stable=True)
    stored = {
        "codes": integers.codes[:, order],
        "scale": integers.scale,
        "zero": integers.zero.reshape(-1),
        "order": order,
    }
    return restore_layer(recipe, (n, k), stored)
