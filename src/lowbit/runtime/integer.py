"""Integer grids at run time: few tokens on the CPU by the packed kernel, anything else slab by slab."""

from torch import Tensor

from lowbit.codes import IntegerGrid
from lowbit.kernels.integer_product import PackedGrid, decode_reference
from lowbit.kernels.integer_product import decode_rows as decode_packed
from lowbit.kernels.integer_product import product as packed_product
from lowbit.runtime.product import StoredCodes, decode_rows, product, slab_product

# Up to here the kernel's work for each token costs less than decoding once and a matrix product: at 4096 x 4096 one
# core does 16 billion weights/s a token in the kernel, decodes 2 billion/s, and multiplies 16 tokens at 27 billion/s.
FEW_TOKENS = 16


@product.register
def _(code: IntegerGrid, stored: StoredCodes, x: Tensor) -> Tensor:
    if len(x) > FEW_TOKENS or not x.is_cpu or x.requires_grad:
        return slab_product(code, stored, x)
    return packed_product(_grid(code, stored), x.float()).to(x.dtype)


@decode_rows.register
def _(code: IntegerGrid, stored: StoredCodes, start: int, stop: int) -> Tensor:
    grid = _grid(code, stored)
    return decode_packed(grid, start, stop) if grid.codes.is_cpu else decode_reference(grid, start, stop)


def _grid(code: IntegerGrid, stored: StoredCodes) -> PackedGrid:
    n, k = stored.shape
    tensors = stored.tensors
    return PackedGrid(
        tensors["codes"].view(n, -1), tensors["scale"], tensors.get("zero"), code.bits, k, code.levels.middle
    )
