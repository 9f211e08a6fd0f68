"""Codes that a kernel decodes row by row into the cache: few tokens on the CPU straight from what is stored.

`packed_rows` says how the kernels see a code. What registers nothing there, or gets None, is decoded in slabs.
"""

from dataclasses import replace
from functools import singledispatch

import torch
from torch import Tensor

from lowbit.codes import BlockScaled, LaidOut, Lookup, PartialBinary, VectorCodebook
from lowbit.core.parts import Code
from lowbit.kernels.coordinate_product import PackedCoordinates
from lowbit.kernels.lookup_product import PackedLookup
from lowbit.kernels.partial_product import PackedPartial
from lowbit.kernels.vector_product import PackedVectors
from lowbit.runtime.product import StoredCodes, by_kernel, decode_rows, fields_of_rows, product, slab_product, slabs

RowCode = Lookup | LaidOut | BlockScaled | VectorCodebook | PartialBinary
PackedRows = PackedLookup | PackedVectors | PackedCoordinates | PackedPartial

# Up to here the kernel's work for each token costs less than decoding once and a matrix product.
_FEW_TOKENS = 8
# Weights whose tables and scales are worked out at a time.
_SLAB_WEIGHTS = 1 << 23


@singledispatch
def packed_rows(code: Code, stored: StoredCodes, start: int, stop: int) -> PackedRows | None:
    """Rows start..stop-1 (whole tiles) of a layer on the CPU as kernels see them, or None."""
    return None


@packed_rows.register
def _(code: BlockScaled, stored: StoredCodes, start: int, stop: int) -> PackedRows | None:
    inner = packed_rows(code.code, stored, start, stop)
    if not isinstance(inner, PackedLookup | PackedVectors | PackedCoordinates):
        return None
    side = fields_of_rows(code, stored, start, stop, leave=code.code.fields(stored.shape))
    return replace(inner, blocks=code.scale_of(side, torch.arange(0, stored.shape[1], code.block_size)))


@product.register
def _(code: RowCode, stored: StoredCodes, x: Tensor) -> Tensor:
    if not by_kernel(x, _FEW_TOKENS):
        return slab_product(code, stored, x)
    out = x.new_empty(len(x), stored.shape[0])
    for start, stop in slabs(code, stored.shape, 4 * _SLAB_WEIGHTS):
        rows = packed_rows(code, stored, start, stop)
        if rows is None:
            return slab_product(code, stored, x)
        out[:, start:stop] = rows.product(x.float())
    return out


@decode_rows.register
def _(code: RowCode, stored: StoredCodes, start: int, stop: int) -> Tensor:
    rows = packed_rows(code, stored, start, stop) if stored.tensors["codes"].is_cpu else None
    return rows.decode() if rows is not None else decode_rows.dispatch(object)(code, stored, start, stop)
