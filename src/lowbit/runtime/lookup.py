"""Codes that look levels up, at run time: few tokens on the CPU by a kernel that reads the packed codes.

Tables are worked out from what is stored as the code itself does it, and the kernel knows nothing else of them, so all
tables share it. Codes that are laid out otherwise go through the general decoding.
"""

import torch
from torch import Tensor

from lowbit.codes import Lookup
from lowbit.codes.groups import group_of
from lowbit.kernels.tables import decode_packed, product_packed
from lowbit.runtime.product import StoredCodes, decode_rows, fields_of_rows, product, slab_product

# Up to here the kernel's work for each token costs less than decoding once and a matrix product: on 1024 x 1024 nf4 it
# takes 3.9 ms on one core, decoding and multiplying 4.2, the general way 7.8; with four tokens 4.7, 4.4 and 8.5.
_FEW_TOKENS = 2


@product.register
def _(code: Lookup, stored: StoredCodes, x: Tensor) -> Tensor:
    if len(x) > _FEW_TOKENS or not x.is_cpu or x.requires_grad:
        return slab_product(code, stored, x)
    return product_packed(*_looked_up(code, stored, 0, stored.shape[0]), x.float()).to(x.dtype)


@decode_rows.register
def _(code: Lookup, stored: StoredCodes, start: int, stop: int) -> Tensor:
    if not stored.tensors["codes"].is_cpu:
        return decode_rows.dispatch(object)(code, stored, start, stop)
    return decode_packed(*_looked_up(code, stored, start, stop))


def _looked_up(code: Lookup, stored: StoredCodes, start: int, stop: int) -> tuple[Tensor, int, Tensor, Tensor]:
    """Packed codes, their bits, the tables and the table of each column, of rows start..stop-1."""
    n, k = stored.shape
    used, group = torch.unique(group_of(code.group_size, torch.arange(k)), return_inverse=True)
    tables = code.tables.of(fields_of_rows(code, stored, start, stop, leave=("codes",)), used)
    return stored.tensors["codes"].view(n, -1)[start:stop], code.tables.bits, tables, group
