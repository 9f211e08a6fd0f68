"""How the kernels see partly binary codes."""

import torch

from lowbit.codes import PartialBinary
from lowbit.codes.groups import side_shape
from lowbit.codes.lookup import working
from lowbit.kernels.lookup_product import PackedLookup, levels, plane_codes
from lowbit.kernels.partial_product import PackedPartial
from lowbit.runtime.product import StoredCodes, fields_of_rows
from lowbit.runtime.rows import packed_rows


@packed_rows.register
def _(code: PartialBinary, stored: StoredCodes, start: int, stop: int) -> PackedPartial:
    n, k = stored.shape
    bits, mask, salient = (
        stored.tensors[name].view(n, -1)[start:stop] for name in ("codes", "salient", "salient_codes")
    )
    side = fields_of_rows(code, stored, start, stop, leave=("codes", "salient", "salient_codes"))
    sets = working(side["levels"])[:, :, None]
    table = levels(sets, torch.ones(1, 1, 1), k // side_shape(code.group_size, stored.shape)[1])
    coarse = PackedLookup(plane_codes(bits[:, None], 1), table, k)
    return PackedPartial(coarse, mask, salient, code.salient_count(k), working(side["salient_grid"]))
