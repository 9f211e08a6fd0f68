"""Columns of two codebooks at run time: the sum of two products, where the usual columns share one codebook."""

from torch import Tensor

from lowbit.codes import FinerColumns
from lowbit.codes.finer import check_places, finer_side
from lowbit.core.fields import Bits
from lowbit.packing import unpack
from lowbit.runtime.product import StoredCodes, product, slab_product


@product.register
def _(code: FinerColumns, stored: StoredCodes, x: Tensor) -> Tensor:
    if code.code.group_size != "tensor":
        return slab_product(code, stored, x)
    (n, k), tensors = stored.shape, stored.tensors
    places = unpack(tensors["finer_column"].cpu(), Bits((code.count(k),), (k - 1).bit_length()))
    check_places(places, k)
    kept = places.long().to(x.device)
    usual = x.new_ones(k).index_fill(0, kept, 0).nonzero()[:, 0]
    finer = product(code.finer_code, StoredCodes((n, len(kept)), finer_side(tensors)), x[:, kept])
    return product(code.code, StoredCodes((n, len(usual)), tensors), x[:, usual]) + finer
