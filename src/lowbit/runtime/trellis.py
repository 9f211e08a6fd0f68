"""Trellises at run time: few tokens on the CPU by the packed kernel, anything else slab by slab."""

import torch
from torch import Tensor

from lowbit.codes import BitshiftTrellis, TailBiting
from lowbit.codes.trellis import arranged
from lowbit.codes.trellis_values import HASHES
from lowbit.kernels.trellis_product import ByteSum, PackedTrellis, decode_reference, has_kernel
from lowbit.kernels.trellis_product import decode_rows as decode_packed
from lowbit.kernels.trellis_product import product as packed_product
from lowbit.runtime.product import StoredCodes, decode_rows, product, slab_product

# Up to here the kernel's work for each token costs less than decoding once and a matrix product.
_FEW_TOKENS, _FEW_TOKENS_OF_TABLES = 32, 8
_BYTE_SUMS = {name: ByteSum(*HASHES[name]) for name in ("1mad", "mul1")}


@product.register
def _(code: BitshiftTrellis, stored: StoredCodes, x: Tensor) -> Tensor:
    return _product(code, code, stored, x)


@product.register
def _(code: TailBiting, stored: StoredCodes, x: Tensor) -> Tensor:
    return _product(code, code.trellis, stored, x)


@decode_rows.register
def _(code: BitshiftTrellis, stored: StoredCodes, start: int, stop: int) -> Tensor:
    return arranged(code, _decode(packed(code, stored, closed=False), start, stop))


@decode_rows.register
def _(code: TailBiting, stored: StoredCodes, start: int, stop: int) -> Tensor:
    return arranged(code.trellis, _decode(packed(code.trellis, stored, closed=True), start, stop))


def packed(code: BitshiftTrellis, stored: StoredCodes, closed: bool) -> PackedTrellis:
    """The layer as the kernels see it. closed: whether paths are tail-biting."""
    (n, k), (rows, columns) = stored.shape, code.tile
    codes = stored.tensors["codes"]
    scale = stored.tensors["scale"].view(-1) if code.scales != "unit" else torch.ones(1, device=codes.device)
    values = code.trellis.values.to(codes.device)
    tiles = codes.view(-(-n // rows), k // columns, -1)
    return PackedTrellis(tiles, scale, n, code.tile, code.step_bits, closed, values, _BYTE_SUMS.get(code.values))


def _product(code: BitshiftTrellis | TailBiting, steps: BitshiftTrellis, stored: StoredCodes, x: Tensor) -> Tensor:
    layer = packed(steps, stored, closed=code is not steps)
    few = _FEW_TOKENS_OF_TABLES if layer.byte_sum is None else _FEW_TOKENS
    by_kernel = steps.order == "columns" and has_kernel(layer)
    if len(x) > few or not x.is_cpu or x.requires_grad or not by_kernel:
        return slab_product(code, stored, x)
    return packed_product(layer, x.float()).to(x.dtype)


def _decode(layer: PackedTrellis, start: int, stop: int) -> Tensor:
    by_kernel = layer.codes.is_cpu and has_kernel(layer)
    return decode_packed(layer, start, stop) if by_kernel else decode_reference(layer, start, stop)
