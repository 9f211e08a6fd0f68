"""How the kernels see codes that look levels up.

What differs among them is said in two places: `codes_of`, where a layout keeps the integers, and `terms_of`, what the
tables are made of. Tables that register nothing there are worked out as the code itself does it.
"""

from collections.abc import Mapping
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.codes import (
    BinaryCoding,
    Digits,
    DualGrained,
    Exchanged,
    LaidOut,
    Lookup,
    LowRankLevels,
    MixedWidths,
    Planes,
    ScaledLevels,
    SuperBlocks,
)
from lowbit.codes.binary import patterns
from lowbit.codes.dual import TOP
from lowbit.codes.groups import side_shape
from lowbit.codes.layout import Layout
from lowbit.codes.lookup import Tables, working
from lowbit.core.records import Side
from lowbit.kernels.lookup_product import (
    Codes,
    PackedLookup,
    digit_codes,
    exchanged_codes,
    levels,
    plane_codes,
)
from lowbit.runtime.product import StoredCodes, fields_of_rows
from lowbit.runtime.rows import packed_rows


class Terms(NamedTuple):
    """Tables of groups as the kernels make them, see `lowbit.kernels.lookup_lanes.look_up`.

    sets: float32 [R or 1, G or 1, terms, levels]; numbers: float32 [R or 1, G or 1, terms], or 5 with no terms.
    """

    sets: Tensor
    numbers: Tensor


@packed_rows.register
def _(code: Lookup, stored: StoredCodes, start: int, stop: int) -> PackedLookup:
    side = fields_of_rows(code, stored, start, stop, leave=("codes",))
    codes = plane_codes(_rows(stored, "codes", start, stop)[:, None], code.tables.bits)
    return _packed(code, codes, side, stored.shape[1])


@packed_rows.register
def _(code: LaidOut, stored: StoredCodes, start: int, stop: int) -> PackedLookup | None:
    names = code.layout.fields(stored.shape)
    side = fields_of_rows(code, stored, start, stop, leave=names)
    streams = {name: _rows(stored, name, start, stop) for name in names}
    codes = codes_of(code.layout, streams, side, stored.shape[1])
    return None if codes is None else _packed(code.code, codes, side, stored.shape[1])


@singledispatch
def codes_of(layout: Layout, streams: Mapping[str, Tensor], side: Side, columns: int) -> Codes | None:
    """Where the integers are, for the fields of the layout as bytes, uint8 [R, bytes]; None for other layouts."""
    return None


@codes_of.register
def _(layout: Planes, streams: Mapping[str, Tensor], side: Side, columns: int) -> Codes:
    return plane_codes(streams["codes"][:, None], layout.low, streams["high_codes"], layout.high)


@codes_of.register
def _(layout: Digits, streams: Mapping[str, Tensor], side: Side, columns: int) -> Codes:
    return digit_codes(streams["codes"][:, None], layout.levels, layout.per_byte)


@codes_of.register
def _(layout: Exchanged, streams: Mapping[str, Tensor], side: Side, columns: int) -> Codes:
    pairs = [(wide.start, narrow.start) for wide, narrow in layout.partners(side["width"], columns)]
    loans = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    return exchanged_codes(
        streams["codes"].view(-1, layout.bits, streams["codes"].shape[1] // layout.bits),
        loans,
        columns // len(side["width"]),
    )


@singledispatch
def terms_of(tables: Tables, side: Side, groups: int) -> Terms:
    """What the tables of all groups, so many a row, of some rows are made of."""
    own = tables.of(side, torch.arange(groups))[:, :, None]
    return Terms(own, own.new_ones(1, 1, 1))


@terms_of.register
def _(tables: ScaledLevels, side: Side, groups: int) -> Terms:
    at = torch.arange(groups)
    sets = tables.unscaled(side, at if tables.choice == "group" else at[:1])
    sets = sets.view(1, 1, 1, -1) if sets.dim() == 2 else sets[:, :, None]
    return Terms(sets, tables.scales.of(side, at)[..., None])


@terms_of.register
def _(tables: BinaryCoding, side: Side, groups: int) -> Terms:
    return Terms(patterns(tables.planes, tables.digits).T.float()[None, None], working(side["planes"]))


@terms_of.register
def _(tables: LowRankLevels, side: Side, groups: int) -> Terms:
    basis, numbers = working(side["basis"]), side["coefficients"]
    offset_first = torch.cat((numbers[..., -1:], numbers[..., :-1]), -1)
    return Terms(torch.cat((torch.ones_like(basis[:1]), basis))[None, None], working(offset_first))


@terms_of.register
def _(tables: SuperBlocks, side: Side, groups: int) -> Terms:
    steps = torch.arange(2**tables.bits).float() - tables.zero
    sets = torch.stack((steps, torch.full_like(steps, -1)))
    return Terms(sets[None, None], torch.stack(tables.steps_of(side, torch.arange(groups)), -1))


@terms_of.register
def _(tables: DualGrained, side: Side, groups: int) -> Terms:
    whole, zero = working(side["group_scale"]), working(side["zero"])
    most = (TOP / whole).floor()
    scale = working(side["scale"]).expand_as(whole)
    return _affine(tables.bits, scale, whole, zero, -most, most)


@terms_of.register
def _(tables: MixedWidths, side: Side, groups: int) -> Terms:
    scale, width = working(side["scale"]), side["width"].long().expand(side["scale"].shape)
    binary = width == 1
    zero = torch.where(binary, 0.5, working(side["zero"]))
    return _affine(tables.bits, scale, 1.0 + binary, zero, -zero, 2**width - 1 - zero)


def _affine(bits: int, *numbers: Tensor) -> Terms:
    return Terms(numbers[0].new_empty(1, 1, 0, 2**bits), torch.stack(numbers, -1))


def _packed(lookup: Lookup, codes: Codes, side: Side, columns: int) -> PackedLookup:
    groups = side_shape(lookup.group_size, (1, columns))[1]
    return PackedLookup(codes, levels(*terms_of(lookup.tables, side, groups), columns // groups), columns)


def _rows(stored: StoredCodes, name: str, start: int, stop: int) -> Tensor:
    return stored.tensors[name].view(stored.shape[0], -1)[start:stop]
