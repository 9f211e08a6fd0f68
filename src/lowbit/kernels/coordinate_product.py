"""Indices of up to 8 bits into codebooks of vectors as d look-ups of numbers, straight from their packed bytes.

    y_r = sum over i < d, tiles t of  C_g[index_rt, i] x_(t d + i),    g the group of tile t

Coordinate i of a codebook is a table of numbers, which `lowbit.kernels.lookup_lanes` looks up for 16 indices at once,
where a copy of d numbers for each index (`vector_product`) moves one vector at a time. The activations are laid out
coordinate by coordinate once. Two codebooks, one for the low and one for the high bits, are added up to one before.

Cost: that of d look-ups of numbers for an index, so of one for a weight. Rows never mix, so the result does not depend
on the number of threads. The oracle is `VectorCodebook.decode`.
"""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from lowbit.kernels.lookup_product import (
    dot,
    factors,
    levels,
    look_up_row,
    plane_codes,
    read_codes,
    row_buffers,
    scale_blocks,
)
from lowbit.kernels.processor import in_threads


@dataclass(frozen=True, eq=False)
class PackedCoordinates:
    """Rows of a layer as stored.

    indices: uint8 [row tiles, bytes], streams of so many `bits`. books: float32 [G, 2^bits, d]. tile: (1, d) or (d, 1).
    columns: K, in G groups. blocks: float32 [row tiles, B], factors of blocks of K / B columns each, whole tiles, for
    tiles of one row.
    """

    indices: Tensor
    bits: int
    books: Tensor
    tile: tuple[int, int]
    columns: int
    blocks: Tensor | None = None

    def decode(self) -> Tensor:
        """The values, float32 [N, K]."""
        values = torch.empty(len(self.indices), self.tile[0], self.columns)
        arrays = *self._arrays(), self.tile[1], values.numpy()
        in_threads(lambda first, last: _decode(first, last, *arrays), len(values), values.numel())
        return values.flatten(0, 1)

    def product(self, x: Tensor) -> Tensor:
        """x [T, K], float32, on the CPU, times the transposed values: [T, N]; for a few tokens."""
        height, width = self.tile
        met = x.view(len(x), -1, width).permute(2, 0, 1).contiguous()
        out = torch.empty(len(x), len(self.indices), height)
        arrays = *self._arrays(), met.numpy(), out.numpy()
        in_threads(lambda first, last: _product(first, last, *arrays), len(self.indices), out[0].numel() * x.shape[1])
        return out.flatten(1)

    def _arrays(self) -> tuple[object, ...]:
        tables = levels(self.books.permute(2, 0, 1)[:, :, None], torch.ones(1, 1, 1), self._group)
        return plane_codes(self.indices[:, None], self.bits), tables, factors(self.blocks)

    @property
    def _group(self) -> int:
        """Indices of a row that share a codebook."""
        return self.columns // self.tile[1] // len(self.books)


@numba.njit(nogil=True, cache=True)
def _decode(first, last, codes, tables, blocks, width, values):  # type: ignore[no-untyped-def]
    """width: columns of a tile; values: [row tiles, rows of a tile, K]."""
    height, count, U = values.shape[1], values.shape[2] // width, np.uint64
    held, row, looked_up = row_buffers(count)
    for r in range(first, last):
        read_codes(codes, r, count, held, row)
        for i in range(max(height, width)):
            _look_up(tables, i, count, row, blocks, r, looked_up)
            for t in range(U(count)):
                values[r, i % height, t * U(width) + U(i % width)] = looked_up[t]


@numba.njit(nogil=True, cache=True)
def _product(first, last, codes, tables, blocks, x, out):  # type: ignore[no-untyped-def]
    """x: [columns of a tile, tokens, indices]; out: [tokens, row tiles, rows of a tile]."""
    count = x.shape[2]
    held, row, looked_up = row_buffers(count)
    for r in range(first, last):
        read_codes(codes, r, count, held, row)
        for t in range(len(out)):
            out[t, r] = np.float32(0)
        for i in range(max(len(x), out.shape[2])):
            _look_up(tables, i, count, row, blocks, r, looked_up)
            for t in range(len(out)):
                out[t, r, i % out.shape[2]] += dot(looked_up, x[i % len(x), t])


@numba.njit(nogil=True, cache=True)
def _look_up(tables, coordinate, count, row, blocks, r, values):  # type: ignore[no-untyped-def]
    """The values of a coordinate of all vectors of row tile r."""
    look_up_row(tables, coordinate, count, row, values)
    if len(blocks):
        scale_blocks(blocks[r], count, values)
