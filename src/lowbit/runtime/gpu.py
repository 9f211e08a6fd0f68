"""Products on a GPU: up to 16 tokens straight from the packed bytes, more by decoding the layer and multiplying.

`packed` says how the Triton kernels see a code; what registers nothing there has no kernel. This module imports Triton:
`lowbit.runtime.product` imports it for tensors on a GPU only, and where Triton is installed.
"""

from functools import cache, singledispatch

import torch
from torch import Tensor

from lowbit.codes import E8P, BitshiftTrellis, IntegerGrid, TailBiting
from lowbit.codes.e8p import GAINS, all_words, points
from lowbit.codes.trellis_values import HASHES
from lowbit.core.parts import Code
from lowbit.kernels.integer_product import PackedGrid
from lowbit.kernels.triton import blocks, e8p, integer, trellis
from lowbit.kernels.triton.blocks import Packed
from lowbit.runtime.product import StoredCodes


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
def _(code: E8P, stored: StoredCodes) -> Packed:
    codes, scale = stored.tensors["codes"], stored.tensors["scale"]
    return e8p.packed_e8p(codes, scale, stored.shape, code.bits, GAINS[code.bits][1], _e8p_tables(codes.device))


@packed.register
def _(code: BitshiftTrellis, stored: StoredCodes) -> Packed | None:
    return _packed_trellis(code, stored, closed=False)


@packed.register
def _(code: TailBiting, stored: StoredCodes) -> Packed | None:
    return _packed_trellis(code.trellis, stored, closed=True)


def _packed_trellis(code: BitshiftTrellis, stored: StoredCodes, closed: bool) -> Packed | None:
    if code.order != "columns" or code.scales == "unit" or not trellis.is_supported(code.V, code.tile[0]):
        return None
    (height, width), (n, k) = code.tile, stored.shape
    codes, scale = stored.tensors["codes"], stored.tensors["scale"]
    values = _COMPUTED.get(code.values, trellis.Values("table"))
    plan = trellis.TrellisPlan(
        values, code.L, code.step_bits, code.V, height, width, -(-n // height), k // width, closed
    )
    table = None if code.values in _COMPUTED else _on(codes.device, code)
    return trellis.packed_trellis(codes, scale, (n, k), plan, table)


_COMPUTED = {
    "mul1": trellis.Values("byte sum", *HASHES["mul1"]),
    "1mad": trellis.Values("byte sum", *HASHES["1mad"]),
    "3inst": trellis.Values("half sum", *HASHES["3inst"]),
}


@cache
def _on(device: torch.device, code: BitshiftTrellis) -> Tensor:
    return code.trellis.values.to(device)


@cache
def _e8p_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    patterns, second_stage = e8p.tables(all_words(), points())
    return patterns.to(device), second_stage.to(device)
