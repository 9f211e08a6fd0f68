"""How the kernels see codes that look levels up.

What differs among them is said in two places: `codes_of`, where a layout keeps the integers, and `terms_of`, what the
tables are sums of. Tables that register nothing there are worked out as the code itself does it.
"""

from collections.abc import Mapping
from functools import singledispatch

import torch
from torch import Tensor

from lowbit.codes import BinaryCoding, Digits, Exchanged, LaidOut, Lookup, LowRankLevels, Planes, ScaledLevels
from lowbit.codes.binary import patterns
from lowbit.codes.groups import side_shape
from lowbit.codes.layout import Layout
from lowbit.codes.lookup import Tables, working
from lowbit.core.records import Side
from lowbit.kernels.lookup_product import Codes, PackedLookup, digit_codes, exchanged_codes, levels, plane_codes
from lowbit.runtime.product import StoredCodes, fields_of_rows
from lowbit.runtime.rows import packed_rows

Terms = tuple[Tensor, Tensor]
"""Sets of levels, [R or 1, G or 1, terms, L], and a number for each, [R or 1, G or 1, terms]: tables are their sums."""


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
def terms_of(tables: Tables, side: Side, at: Tensor) -> Terms:
    """What the tables of the groups `at` are sums of."""
    own = tables.of(side, at)[:, :, None]
    return own, own.new_ones(1, 1, 1)


@terms_of.register
def _(tables: ScaledLevels, side: Side, at: Tensor) -> Terms:
    sets = tables.unscaled(side, at)
    return sets.view(1, 1, 1, -1) if sets.dim() == 2 else sets[:, :, None], tables.scales.of(side, at)[..., None]


@terms_of.register
def _(tables: BinaryCoding, side: Side, at: Tensor) -> Terms:
    return patterns(tables.planes, tables.digits).T.float()[None, None], working(side["planes"])[:, at]


@terms_of.register
def _(tables: LowRankLevels, side: Side, at: Tensor) -> Terms:
    basis = working(side["basis"])
    return torch.cat((torch.ones_like(basis[:1]), basis))[None, None], working(side["coefficients"])[:, at].roll(1, -1)


def _packed(lookup: Lookup, codes: Codes, side: Side, columns: int) -> PackedLookup:
    groups = side_shape(lookup.group_size, (1, columns))[1]
    return PackedLookup(codes, levels(*terms_of(lookup.tables, side, torch.arange(groups)), columns // groups), columns)


def _rows(stored: StoredCodes, name: str, start: int, stop: int) -> Tensor:
    return stored.tensors[name].view(stored.shape[0], -1)[start:stop]
