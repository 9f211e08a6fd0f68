"""Integer grids at run time: few tokens on the CPU by the packed kernel, anything else slab by slab."""

from torch import Tensor

from lowbit.codes import IntegerGrid, MidriseGrid
from lowbit.kernels.integer_product import PackedGrid, decode_reference
from lowbit.kernels.integer_product import decode_rows as decode_packed
from lowbit.kernels.integer_product import product as packed_product
from lowbit.runtime.product import StoredCodes, by_kernel, decode_rows, product, slab_product

# Up to here the kernel's work for each token costs less than decoding once and a matrix product: at 4096 x 4096 one
# core does 16 billion weights/s a token in the kernel, decodes 2 billion/s, and multiplies 16 tokens at 27 billion/s.
FEW_TOKENS = 16


@product.register
def _(code: IntegerGrid | MidriseGrid, stored: StoredCodes, x: Tensor) -> Tensor:
    if not by_kernel(x, FEW_TOKENS):
        return slab_product(code, stored, x)
    return packed_product(_grid(code, stored), x.float()).to(x.dtype)


@decode_rows.register
def _(code: IntegerGrid | MidriseGrid, stored: StoredCodes, start: int, stop: int) -> Tensor:
    grid = _grid(code, stored)
    return decode_packed(grid, start, stop) if grid.codes.is_cpu else decode_reference(grid, start, stop)


def _grid(code: IntegerGrid | MidriseGrid, stored: StoredCodes) -> PackedGrid:
    (n, k), tensors = stored.shape, stored.tensors
    codes = tensors["codes"].view(n, -1)
    if isinstance(code, MidriseGrid):
        return PackedGrid(codes, tensors["scale"].view(1, 1), None, code.bits, k, code.middle)
    return PackedGrid(codes, tensors["scale"], tensors.get("zero"), code.bits, k, code.levels.middle)
