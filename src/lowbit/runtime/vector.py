"""How the kernels see codebooks of vectors."""

from lowbit.codes import VectorCodebook
from lowbit.kernels.coordinate_product import PackedCoordinates
from lowbit.kernels.vector_product import PackedVectors
from lowbit.runtime.product import StoredCodes
from lowbit.runtime.rows import packed_rows

# Indices whose codebooks are looked up as tables of numbers.
_MOST_BITS_OF_TABLES = 8


@packed_rows.register
def _(code: VectorCodebook, stored: StoredCodes, start: int, stop: int) -> PackedVectors | PackedCoordinates:
    (n, k), height = stored.shape, code.tile[0]
    indices = stored.tensors["codes"].view(n // height, -1)[start // height : stop // height]
    first = code.books(stored.tensors, "codebook")
    second = code.books(stored.tensors, "residual_codebook") if code.residual_bits else first[:, :0]
    bits = code.bits + code.residual_bits
    if bits > _MOST_BITS_OF_TABLES:
        return PackedVectors(indices, bits, code.bits, first, second, code.tile, k)
    both = (second[:, :, None] + first[:, None]).flatten(1, 2) if code.residual_bits else first
    return PackedCoordinates(indices, bits, both, code.tile, k)
