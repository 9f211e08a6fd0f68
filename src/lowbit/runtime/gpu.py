"""Products on a GPU: up to 16 tokens straight from the packed bytes, more by decoding the layer and multiplying.

`packed` says how the Triton kernels see a code; what registers nothing there has no kernel. This module imports Triton:
`lowbit.runtime.product` imports it for tensors on a GPU only, and where Triton is installed.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, singledispatch

import torch
from torch import Tensor

from lowbit.codes import (
    E8P,
    BitshiftTrellis,
    BlockScaled,
    Digits,
    IntegerGrid,
    LaidOut,
    Lookup,
    MidriseGrid,
    Planes,
    TailBiting,
    VectorCodebook,
)
from lowbit.codes.e8p import GAINS, all_words, points
from lowbit.codes.groups import side_shape
from lowbit.codes.layout import Layout
from lowbit.core.parts import Code
from lowbit.kernels.integer_product import PackedGrid
from lowbit.kernels.state_values import FROM_TABLE
from lowbit.kernels.triton import blocks, e8p, integer, lookup, trellis, vector
from lowbit.kernels.triton.blocks import Packed
from lowbit.runtime.lookup import terms_of
from lowbit.runtime.product import StoredCodes, fields_of_rows
from lowbit.runtime.trellis import COMPUTED

_CODES = ("codes", "high_codes")


def product_on_gpu(code: Code, stored: StoredCodes, x: Tensor) -> Tensor | None:
    """x [T, K] times the transposed values: [T, N] in x's type. None where there is no kernel for the code."""
    layer = packed(code, stored)
    if layer is None:
        return None
    if len(x) <= blocks.MOST_TOKENS and not x.requires_grad:
        return blocks.product(layer, x)
    return x @ blocks.dense(layer, x.dtype).T


@singledispatch
def packed(code: Code, stored: StoredCodes) -> Packed | None:
    """The layer as kernels see it, or None."""
    return None


@packed.register
def _(code: IntegerGrid, stored: StoredCodes) -> Packed:
    (n, k), tensors = stored.shape, stored.tensors
    codes = tensors["codes"].view(n, -1)
    return integer.packed_grid(
        PackedGrid(codes, tensors["scale"], tensors.get("zero"), code.bits, k, code.levels.middle)
    )


@packed.register
def _(code: MidriseGrid, stored: StoredCodes) -> Packed:
    (n, k), scale = stored.shape, stored.tensors["scale"].view(1, 1)
    return integer.packed_grid(PackedGrid(stored.tensors["codes"].view(n, -1), scale, None, code.bits, k, code.middle))


@packed.register
def _(code: Lookup, stored: StoredCodes) -> Packed:
    return _packed_lookup(code, code, lookup.Streams(stored.tensors["codes"], code.tables.bits), stored)


@packed.register
def _(code: LaidOut, stored: StoredCodes) -> Packed | None:
    streams = _streams(code.layout, stored.tensors)
    return None if streams is None else _packed_lookup(code, code.code, streams, stored)


@packed.register
def _(code: VectorCodebook, stored: StoredCodes) -> Packed:
    names = ["codebook", "residual_codebook"] if code.residual_bits else ["codebook"]
    books = [code.books(stored.tensors, name) for name in names]
    return vector.packed_vectors(stored.shape, stored.tensors["codes"], code.tile, tuple(books))


@packed.register
def _(code: BlockScaled, stored: StoredCodes) -> Packed | None:
    inner = packed(code.code, stored)
    if inner is None:
        return None
    side = fields_of_rows(code, stored, 0, stored.shape[0], leave=code.code.fields(stored.shape))
    return replace(inner, factors=code.scale_of(side, torch.arange(0, stored.shape[1], code.block_size)).contiguous())


@packed.register
def _(code: E8P, stored: StoredCodes) -> Packed:
    codes, scale = stored.tensors["codes"], stored.tensors["scale"]
    return e8p.packed_e8p(codes, scale, stored.shape, code.bits, GAINS[code.bits][1], _e8p_tables(codes.device))


@packed.register
def _(code: BitshiftTrellis, stored: StoredCodes) -> Packed | None:
    return _packed_trellis(code, stored, closed=False)


@packed.register
def _(code: TailBiting, stored: StoredCodes) -> Packed | None:
    return _packed_trellis(code.trellis, stored, closed=True)


def _packed_lookup(code: Lookup | LaidOut, inner: Lookup, streams: lookup.Streams, stored: StoredCodes) -> Packed:
    side = fields_of_rows(code, stored, 0, stored.shape[0], leave=_CODES)
    terms = terms_of(inner.tables, side, side_shape(inner.group_size, stored.shape)[1])
    device = streams.low.device
    return lookup.packed_lookup(stored.shape, streams, terms.sets.to(device), terms.numbers.to(device))


def _streams(layout: Layout, tensors: Mapping[str, Tensor]) -> lookup.Streams | None:
    """Where the codes are; None for a layout that kernels do not read."""
    match layout:
        case Planes():
            return lookup.Streams(tensors["codes"], layout.low, 1, tensors["high_codes"], layout.high)
        case Digits():
            return lookup.Streams(tensors["codes"], 8, base=layout.levels, per_byte=layout.per_byte)
    return None


def _packed_trellis(code: BitshiftTrellis, stored: StoredCodes, closed: bool) -> Packed | None:
    if not trellis.is_supported(code.V, code.tile[0], code.order):
        return None
    (height, width), (n, k) = code.tile, stored.shape
    codes = stored.tensors["codes"]
    scale = stored.tensors["scale"] if code.scales != "unit" else torch.ones(1, device=codes.device)
    values = COMPUTED.get(code.values, FROM_TABLE)
    plan = trellis.TrellisPlan(
        values, code.L, code.step_bits, code.V, height, width, -(-n // height), k // width, closed, code.order
    )
    table = _on(codes.device, code) if values is FROM_TABLE else None
    return trellis.packed_trellis(codes, scale, (n, k), plan, table)


@cache
def _on(device: torch.device, code: BitshiftTrellis) -> Tensor:
    return code.trellis.values.to(device)


@cache
def _e8p_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    patterns, second_stage = e8p.tables(all_words(), points())
    return patterns.to(device), second_stage.to(device)
