"""Products of codes that were fitted to a layer: the code inside serves, once it knows the layer's shape."""

from torch import Tensor
from torch.nn.functional import pad

from lowbit.codes import Padded
from lowbit.runtime.product import StoredCodes, decode_rows, product


@product.register
def _(code: Padded, stored: StoredCodes, x: Tensor) -> Tensor:
    filled = code.filled(stored.shape)
    return product(code.code, StoredCodes(filled, stored.tensors), pad(x, (0, filled[1] - stored.shape[1])))


@decode_rows.register
def _(code: Padded, stored: StoredCodes, start: int, stop: int) -> Tensor:
    filled = StoredCodes(code.filled(stored.shape), stored.tensors)
    return decode_rows(code.code, filled, start, stop)[:, : stored.shape[1]]
