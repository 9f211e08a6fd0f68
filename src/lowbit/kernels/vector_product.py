"""Multiplying by, and decoding, codes that are indices into codebooks of vectors, straight from their packed bytes.

    d values of a tile = C_g[low bits of its index] + C'_g[high bits],    g the group of its columns; C' may be none

A tile of d columns fills d neighbouring places of a row, one of d rows the same place of d rows: two strides. Rows pass
through a buffer that stays in the first-level cache, as in `lowbit.kernels.lookup_product`. d is a constant of the
compiled loops, for each of which a kernel is cached on disk.

Cost: some 6 instructions for an index, a load and a store for a weight (twice with two codebooks), one instruction for
a token and 16 weights. Rows never mix, so the result does not depend on the number of threads. The oracle is
`VectorCodebook.decode`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from lowbit.kernels.bit_streams import read_integers
from lowbit.kernels.lookup_product import dot, factors, scale_blocks
from lowbit.kernels.processor import in_threads


@dataclass(frozen=True, eq=False)
class PackedVectors:
    """Rows of a layer as stored.

    indices: uint8 [row tiles, bytes], streams of so many `bits`, of which `low_bits` are for the first codebook.
    first, second: float32 [G, vectors, d]; second [G, 0, d] for none. tile: (1, d) or (d, 1). columns: K, in G groups.
    blocks: float32 [row tiles, B], factors of blocks of K / B columns each, for tiles of one row.
    """

    indices: Tensor
    bits: int
    low_bits: int
    first: Tensor
    second: Tensor
    tile: tuple[int, int]
    columns: int
    blocks: Tensor | None = None

    def decode(self) -> Tensor:
        """The values, float32 [N, K]."""
        values = torch.empty(len(self.indices) * self.tile[0], self.columns)
        self._run(_kernels(max(self.tile))[0], values)
        return values

    def product(self, x: Tensor) -> Tensor:
        """x [T, K], float32, on the CPU, times the transposed values: [T, N]; for a few tokens."""
        out = torch.empty(len(x), len(self.indices) * self.tile[0])
        self._run(_kernels(max(self.tile))[1], x.contiguous(), out)
        return out

    def _run(self, kernel: Callable[..., None], *tensors: Tensor) -> None:
        codes = self.indices.numpy(), self.bits, self.low_bits, self.tile[0], self.columns
        books = self.first.contiguous().numpy(), self.second.contiguous().numpy()
        arrays = [tensor.numpy() for tensor in tensors]
        weights = len(self.indices) * self.tile[0] * self.columns
        in_threads(
            lambda start, stop: kernel(start, stop, codes, books, factors(self.blocks), *arrays),
            len(self.indices),
            weights,
        )


@cache
def _kernels(dimension: int) -> tuple[Any, Any]:
    """decode(first, last, codes, books, blocks, values) and product(first, last, codes, books, blocks, x, out), on row
    tiles first..last-1; codes: the fields of `PackedVectors` but for the codebooks."""

    @numba.njit(nogil=True, cache=True)
    def fill(codes, books, blocks, r, held, rows):  # type: ignore[no-untyped-def]
        """The values of a row of tiles, [height * K], one row after the other, times the scales of blocks if any."""
        indices, bits, low_bits, height, k = codes
        first, second = books
        U = np.uint64
        read_integers(indices[r], U(0), U(bits), held)
        step, along = (U(1), U(k)) if height > 1 else (U(dimension), U(1))
        each, mask = U(len(held) // len(first)), U((1 << low_bits) - 1)
        for g in range(U(len(first))):
            some, more = first[g], second[g]
            for t in range(g * each, (g + U(1)) * each):
                low, high = U(held[t]) & mask, U(held[t]) >> U(low_bits)
                for i in range(U(dimension)):
                    rows[t * step + i * along] = some[low, i]
                if len(more):
                    for i in range(U(dimension)):
                        rows[t * step + i * along] += more[high, i]
        if len(blocks):
            scale_blocks(blocks[r], k, rows)

    @numba.njit(nogil=True, cache=True)
    def decode(start, stop, codes, books, blocks, values):  # type: ignore[no-untyped-def]
        height, k = codes[3], codes[4]
        held, rows = np.empty(height * k // dimension, np.uint32), np.empty(height * k, np.float32)
        for r in range(start, stop):
            fill(codes, books, blocks, r, held, rows)
            for i in range(height):
                values[r * height + i] = rows[i * k : (i + 1) * k]

    @numba.njit(nogil=True, cache=True)
    def product(start, stop, codes, books, blocks, x, out):  # type: ignore[no-untyped-def]
        height, k = codes[3], codes[4]
        held, rows = np.empty(height * k // dimension, np.uint32), np.empty(height * k, np.float32)
        for r in range(start, stop):
            fill(codes, books, blocks, r, held, rows)
            for i in range(height):
                row = rows[i * k : (i + 1) * k]
                for t in range(len(x)):
                    out[t, r * height + i] = dot(row, x[t])

    return decode, product
