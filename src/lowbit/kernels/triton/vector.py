"""Codebooks of vectors (`lowbit.kernels.vector_product`) on the GPU: an index for d weights of a row or a column.

Each thread reads the index of its weight, those of a tile the same one, and gathers its coordinate; neighbouring
threads read neighbouring numbers of a vector where tiles lie along inputs. Codebooks up to some 16 KiB stay in the
first-level cache, larger ones in the second. Operations a weight: a dozen for the index, a gather for each codebook.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from lowbit.kernels.triton.bits import bits_at
from lowbit.kernels.triton.blocks import Packed

_ROWS, _COLUMNS = 64, 64


@dataclass(frozen=True)
class VectorPlan:
    """n, k: of the layer; height, width: of a tile, one of them 1; bits, second_bits: of an index; group: columns of a
    codebook."""

    n: int
    k: int
    height: int
    width: int
    bits: int
    second_bits: int
    group: int

    @property
    def row_nbytes(self) -> int:
        return -(-(self.k // self.width) * (self.bits + self.second_bits) // 8)

    @property
    def rows(self) -> int:
        return _ROWS

    @property
    def columns(self) -> int:
        return _COLUMNS


def packed_vectors(shape: tuple[int, int], codes: Tensor, tile: tuple[int, int], books: tuple[Tensor, ...]) -> Packed:
    """A layer [N, K], all its tensors on one GPU. codes: uint8, as stored; books: one or two, floating point
    [G, 2^bits, d]."""
    (n, k), first, second = shape, books[0].contiguous(), books[-1].contiguous()
    bits = [book.shape[1].bit_length() - 1 for book in books]
    plan = VectorPlan(n, k, *tile, bits[0], bits[1] if len(bits) > 1 else 0, k // len(first))
    return Packed(shape, decode, (codes, first, second), plan, None)


@triton.jit
def decode(stored, top, left, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """See `lowbit.kernels.triton.blocks`."""
    codes, first, second = stored
    row = tl.minimum(top + tl.arange(0, plan.rows), plan.n - 1)[:, None]
    column = tl.minimum(left + tl.arange(0, plan.columns), plan.k - 1)[None, :]
    stream = codes + (row // plan.height).to(tl.int64) * plan.row_nbytes
    every: tl.constexpr = plan.bits + plan.second_bits
    start = column // plan.width * every
    index = bits_at(stream, start, plan.row_nbytes * 8, every, 7).to(tl.int64)
    coordinate = row % plan.height + column % plan.width
    d: tl.constexpr = plan.height * plan.width
    group = column // plan.group
    vector = (group << plan.bits) + (index & ((1 << plan.bits) - 1))
    values = tl.load(first + vector * d + coordinate).to(tl.float32)
    if plan.second_bits > 0:
        vector = (group << plan.second_bits) + (index >> plan.bits)
        values += tl.load(second + vector * d + coordinate).to(tl.float32)
    return values
