"""How the kernels see codebooks of vectors."""

from lowbit.codes import VectorCodebook
from lowbit.kernels.vector_product import PackedVectors
from lowbit.runtime.product import StoredCodes
from lowbit.runtime.rows import packed_rows


@packed_rows.register
def _(code: VectorCodebook, stored: StoredCodes, start: int, stop: int) -> PackedVectors:
    (n, k), height = stored.shape, code.tile[0]
    indices = stored.tensors["codes"].view(n // height, -1)[start // height : stop // height]
    first = code.books(stored.tensors, "codebook")
    second = code.books(stored.tensors, "residual_codebook") if code.residual_bits else first[:, :0]
    return PackedVectors(indices, code.bits + code.residual_bits, code.bits, first, second, code.tile, k)
