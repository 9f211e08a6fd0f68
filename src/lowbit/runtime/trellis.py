"""Trellises at run time: few tokens on the CPU by the packed kernel, anything else slab by slab."""

import torch
from torch import Tensor

from lowbit.codes import BitshiftTrellis, TailBiting
from lowbit.codes.trellis import fragment
from lowbit.codes.trellis_values import HASHES
from lowbit.kernels.state_values import FROM_TABLE, StateValues
from lowbit.kernels.trellis_product import PackedTrellis, computes, decode_reference, has_kernel
from lowbit.kernels.trellis_product import decode_rows as decode_packed
from lowbit.kernels.trellis_product import product as packed_product
from lowbit.runtime.product import StoredCodes, by_kernel, decode_rows, product, slab_product

# Up to here the kernel's work for each token costs less than decoding once and a matrix product.
_FEW_TOKENS, _FEW_TOKENS_OF_TABLES = 32, 8
_FRAGMENT = tuple(fragment().tolist())

COMPUTED = {
    "mul1": StateValues("byte sum", *HASHES["mul1"]),
    "1mad": StateValues("byte sum", *HASHES["1mad"]),
    "3inst": StateValues("rounded half sum", *HASHES["3inst"]),
    # (1774 sum - 905216) / 2^18 of the whole sum.
    "exl3-mul1": StateValues("byte sum", *HASHES["mul1"][:2], (1 << 18) / 1774, (510 * 1774 - 905216) / (1 << 18)),
    "exl3-mcg": StateValues("half sum", *HASHES["mcg"]),
    "exl3-3inst": StateValues("half sum", *HASHES["3inst"][:2]),
}
"""The values that kernels compute, by name."""


@product.register
def _(code: BitshiftTrellis, stored: StoredCodes, x: Tensor) -> Tensor:
    return _product(code, code, stored, x)


@product.register
def _(code: TailBiting, stored: StoredCodes, x: Tensor) -> Tensor:
    return _product(code, code.trellis, stored, x)


@decode_rows.register
def _(code: BitshiftTrellis, stored: StoredCodes, start: int, stop: int) -> Tensor:
    return _decode(packed(code, stored, closed=False), start, stop)


@decode_rows.register
def _(code: TailBiting, stored: StoredCodes, start: int, stop: int) -> Tensor:
    return _decode(packed(code.trellis, stored, closed=True), start, stop)


def packed(code: BitshiftTrellis, stored: StoredCodes, closed: bool) -> PackedTrellis:
    """The layer as the kernels see it. closed: whether paths are tail-biting."""
    (n, k), (rows, columns) = stored.shape, code.tile
    codes = stored.tensors["codes"]
    scale = stored.tensors["scale"].view(-1) if code.scales != "unit" else torch.ones(1, device=codes.device)
    values = code.trellis.values.to(codes.device)
    tiles = codes.view(-(-n // rows), k // columns, -1)
    order = _FRAGMENT if code.order == "fragment" else None
    computed = COMPUTED.get(code.values, FROM_TABLE)
    return PackedTrellis(tiles, scale, n, code.tile, code.step_bits, closed, values, computed, order)


def _product(code: BitshiftTrellis | TailBiting, steps: BitshiftTrellis, stored: StoredCodes, x: Tensor) -> Tensor:
    layer = packed(steps, stored, closed=code is not steps)
    few = _FEW_TOKENS if computes(layer) else _FEW_TOKENS_OF_TABLES
    if not by_kernel(x, few) or not has_kernel(layer):
        return slab_product(code, stored, x)
    return packed_product(layer, x.float()).to(x.dtype)


def _decode(layer: PackedTrellis, start: int, stop: int) -> Tensor:
    fast = layer.codes.is_cpu and has_kernel(layer)
    return decode_packed(layer, start, stop) if fast else decode_reference(layer, start, stop)
