"""GGUF's block types: which of them holds a layer exactly, and the layer that a tensor of blocks stands for.

Two kinds of lowbit's codes are blocks as they stand and become blocks without a number changed:

    super-blocks       u k q - v l     Q2_K Q4_K Q5_K, and Q4_1 Q5_1 with one group a block, k and l 1
                       u k (q - z)     Q3_K Q6_K
    signed integers    d q             Q4_0 Q5_0 Q8_0, d of either sign

Integers with zero points in groups of whole blocks fit, too: a K-quant has k = 1 and the zero point for l then, a
signed type the codes less their zero point. Between blocks and lowbit's fields lies `gguf_layouts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.codes import Lookup, ScaledLevels, SuperBlocks
from lowbit.core.errors import BadRequest, require
from lowbit.core.layer import QuantizedLayer, restore_layer
from lowbit.exchange.format import as_float16
from lowbit.exchange.gguf_layouts import (
    Bytes,
    Folded,
    Half,
    Piece,
    Steps6,
    StepsAndMinima4,
    StepsAndMinima6,
    pack,
    unpack,
)
from lowbit.exchange.integers import Integers, integers_of, layer_of, places
from lowbit.recipes import rtn

_STEP, _MINIMUM, _OFFSET = Half("step_unit"), Half("minimum_unit"), Half("minimum_unit", negative=True)
_LOW, _HIGH = Folded(1, 4, 16), Folded(4, 1, 4, shift=4)
_LEAST_STEP = 2.0**-24


@dataclass(frozen=True)
class BlockType:
    """A type of block.

    name: as gguf's enumeration has it. width: columns. bits: of a code. super_block: how steps and minima are made, or
    None for signed integers with a step of their own. pieces: the block's bytes.
    """

    name: str
    width: int
    bits: int
    super_block: SuperBlocks | None
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def signed(self) -> bool:
        """Whether codes count from the middle and steps have signs."""
        return self.super_block is None or self.super_block.symmetric

    @property
    def groups(self) -> int:
        """Groups of a block."""
        return 1 if self.super_block is None else self.super_block.count

    def holds(self, layer: Integers) -> bool:
        """Whether integers, of which `_objection` has nothing to say, fit exactly."""
        if self.groups == 1 and self.super_block is not None:
            return False  # Q4_1 and Q5_1 round the product of zero point and scale
        if layer.shape[1] % self.width or layer.grid.group_size % self.width:
            return False
        if not self.signed:
            return layer.bits <= self.bits
        values, half = self._turned(layer)[0], 1 << self.bits - 1
        return int(values.min()) >= -half and int(values.max()) < half

    def of_integers(self, layer: Integers) -> dict[str, Tensor]:
        """The fields [N, ...] of integers that fit."""
        n, blocks = layer.shape[0], layer.shape[1] // self.width
        place = layer.group_of[:: self.width]
        unit, ones = layer.scale[:, place].half(), torch.ones(n, blocks * self.groups, dtype=torch.uint8)
        if not self.signed:
            minimum = layer.zero[:, place].repeat_interleave(self.groups, 1)
            return {"codes": layer.codes, "step": ones, "minimum": minimum, "step_unit": unit, "minimum_unit": unit}
        values, sign = self._turned(layer)
        codes = (values + (1 << self.bits - 1)).to(torch.uint8)
        if self.super_block is None:
            return {"codes": codes, "step_unit": unit * sign}
        return {"codes": codes, "step": ones + (self.super_block.step_zero), "step_unit": unit * sign}

    def blocks(self, fields: Mapping[str, Tensor]) -> Tensor:
        """The rows of fields [N, ...] as bytes, uint8 [N, K / width * nbytes]."""
        n, k = fields["codes"].shape
        count = n * (k // self.width)
        return pack(self.pieces, {name: field.reshape(count, -1) for name, field in fields.items()}).view(n, -1)

    def layer(self, data: Tensor, origin: str) -> QuantizedLayer:
        """The layer of rows of blocks, uint8 [N, bytes]; origin: its recipe's name. BadRequest for NaN and Inf."""
        n = len(data)
        fields = {name: found.view(n, -1) for name, found in unpack(self.pieces, data.view(-1, self.nbytes)).items()}
        units = [field for name, field in fields.items() if name.endswith("_unit")]
        require(all(bool(torch.isfinite(unit).all()) for unit in units), "a scale is NaN or Inf.")
        shape = n, fields["codes"].shape[1]
        if self.super_block is None:
            return _signed_layer(self.bits, fields, shape, origin)
        ones = torch.ones_like(fields["step_unit"], dtype=torch.uint8)
        code = Lookup(self.super_block, self.width // self.groups, "static")
        recipe = replace(rtn(), name=origin, code=code)
        return restore_layer(recipe, shape, {"step": ones, "minimum": ones} | fields)

    def _turned(self, layer: Integers) -> tuple[Tensor, Tensor]:
        """Codes less zero point, int16 [N, K], with the sign of each block [N, K / width] that keeps them in reach."""
        values = layer.signed().view(len(layer.codes), -1, self.width)
        sign = 1 - 2 * (values.amax(-1) >= 1 << self.bits - 1).short()
        return (values * sign[..., None]).flatten(1), sign


def stored(layer: QuantizedLayer) -> tuple[BlockType, dict[str, Tensor]]:
    """The smallest block type that holds a layer exactly, and its fields; BadRequest says why where none does."""
    code = layer.recipe.code_at(layer.shape)
    if isinstance(code, Lookup) and isinstance(code.tables, SuperBlocks):
        return _of_super_blocks(code, code.tables, layer)
    integers = integers_of(layer)
    _check(integers)
    kind = next((kind for kind in BLOCK_TYPES if kind.holds(integers)), None)
    if kind is None:
        raise BadRequest("no block type reaches from its least to its most")
    return kind, kind.of_integers(integers)


def _of_super_blocks(code: Lookup, tables: SuperBlocks, layer: QuantizedLayer) -> tuple[BlockType, dict[str, Tensor]]:
    rows, columns = places(layer)
    require(torch.equal(columns, torch.arange(len(columns))), _ACT_ORDER)
    for kind in BLOCK_TYPES:
        own = kind.super_block
        if own is not None and (code.group_size, _layout(tables)) == (kind.width // kind.groups, _layout(own)):
            names = ("step", "minimum", "step_unit", "minimum_unit")
            fields = {name: layer.side[name] for name in names if name in layer.side}
            typed = {name: field.half() if name.endswith("_unit") else field.byte() for name, field in fields.items()}
            return kind, {name: field[rows] for name, field in ({"codes": layer.codes.byte()} | typed).items()}
    raise BadRequest(f"no block type is made of {tables} in groups of {code.group_size}")


def _layout(tables: SuperBlocks) -> tuple[int, int, int, bool]:
    return tables.bits, tables.scale_bits, tables.count, tables.symmetric


_ACT_ORDER = "its groups hold columns that are not neighbours (act-order)"


def _check(layer: Integers) -> None:
    """Raise BadRequest where no block type at all could hold integers."""
    require(layer.grid.in_order, _ACT_ORDER)
    size = layer.grid.group_size
    require(size % 32 == 0, f"its groups of {size} columns are not whole blocks of 32")
    require(as_float16(layer.scale) is not None, f"its scales are {layer.scale.dtype} and do not fit float16")


def _signed_layer(bits: int, fields: Mapping[str, Tensor], shape: tuple[int, int], origin: str) -> QuantizedLayer:
    """Integers where all steps are positive, signed levels where some turn."""
    middle, step = 1 << bits - 1, fields["step_unit"]
    nothing = (step == 0).repeat_interleave(shape[1] // step.shape[1], 1)
    codes, step = fields["codes"].where(~nothing, middle), step.where(step != 0, _LEAST_STEP)
    if bool((step > 0).all()):
        zero = torch.full(step.shape, middle, dtype=torch.uint8)
        group_of = torch.arange(shape[1]) // (shape[1] // step.shape[1])
        return layer_of(Integers(bits, codes, step, zero, group_of), origin)
    code = Lookup(ScaledLevels(f"int{bits}"), shape[1] // step.shape[1], "static")
    return restore_layer(replace(rtn(), name=origin, code=code), shape, {"codes": codes, "signed_step": step})


BLOCK_TYPES = (
    BlockType("Q2_K", 256, 2, SuperBlocks(2, 4, 16), (StepsAndMinima4(), Folded(2, 2, 64), _STEP, _MINIMUM)),
    BlockType(
        "Q3_K", 256, 3, SuperBlocks(3, 6, 16, True), (Folded(1, 1, 32, shift=2), Folded(2, 2, 64), Steps6(), _STEP)
    ),
    BlockType("Q4_0", 32, 4, None, (_STEP, _LOW)),
    BlockType("Q4_K", 256, 4, SuperBlocks(4, 6, 8), (_STEP, _MINIMUM, StepsAndMinima6(), Folded(4, 4, 128))),
    BlockType("Q4_1", 32, 4, SuperBlocks(4, 1, 1), (_STEP, _OFFSET, _LOW)),
    BlockType("Q5_0", 32, 5, None, (_STEP, _HIGH, _LOW)),
    BlockType(
        "Q5_K",
        256,
        5,
        SuperBlocks(5, 6, 8),
        (_STEP, _MINIMUM, StepsAndMinima6(), Folded(1, 1, 32, shift=4), Folded(4, 4, 128)),
    ),
    BlockType("Q5_1", 32, 5, SuperBlocks(5, 1, 1), (_STEP, _OFFSET, _HIGH, _LOW)),
    BlockType(
        "Q6_K", 256, 6, SuperBlocks(6, 8, 16, True), (Folded(2, 4, 128), Folded(2, 2, 64, 4), Bytes("step", 16), _STEP)
    ),
    BlockType("Q8_0", 32, 8, None, (_STEP, Bytes("codes", 32))),
)
"""From the fewest bits per weight to the most."""
