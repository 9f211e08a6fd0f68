"""Multiplying by E8P codes straight from their bytes.

    y_r = sum over groups of eight inputs  (word + second stage) . x,      words in units of 1/4, as eight int8

Two loops a row: 64-bit words are looked up into a buffer, then the buffer is a row of int8 that meets the float32
activations of each token, a loop LLVM turns into vectors. One loop for both, which it does not, is ten times slower.

Cost: 512 KiB of table, one look-up for eight weights, a conversion and a multiply-add for 16 of them and a token. The
table stays in the second-level cache; 1 KiB of patterns would do with some ten instructions for 16 weights to set
signs. Rows never mix, so the result does not depend on the number of threads. The oracle is `lowbit.codes.E8P.decode`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_ROWS = 16
_ANY_ORDER_OF_SUMS = {"reassoc", "contract", "nsz"}


@dataclass(frozen=True, eq=False)
class Stage:
    """A codebook of eight-dimensional vectors: int8 [words, 8] in units of `unit`."""

    words: Tensor
    unit: float


def product(codes: Tensor, first: Stage, second: Stage | None, x: Tensor) -> Tensor:
    """x [T, K], float32, times the transposed values without their scale: [T, N].

    codes: uint8 [N, K / 8, bytes]: two for a word of the first stage, the others for one of the second.
    """
    out = torch.empty(len(x), len(codes))
    second = second or Stage(torch.zeros(1, 8, dtype=torch.int8), 0.0)
    tables = (first.words.view(torch.int64)[:, 0].numpy(), second.words.view(torch.int64)[:, 0].numpy())
    units = np.float32(first.unit), np.float32(second.unit)
    _kernel(codes.shape[2])(codes.numpy(), *tables, units, x.contiguous().numpy(), out.numpy())
    return out


@cache
def _kernel(size: int) -> Any:
    """kernel(codes [N, G, size], first [65536], second, units, x [T, 8 G], out [T, N])"""
    U = np.uint64

    @numba.njit(parallel=True, cache=True, fastmath=_ANY_ORDER_OF_SUMS)
    def kernel(codes, first, second, units, x, out):  # type: ignore[no-untyped-def]
        unit, finer = units
        for chunk in numba.prange(-(-len(codes) // _ROWS)):
            buffer = np.empty((2, codes.shape[1]), np.int64)
            words = buffer.view(np.int8)
            for r in range(U(chunk * _ROWS), U(min(len(codes), (chunk + 1) * _ROWS))):
                for g in range(U(codes.shape[1])):
                    buffer[0, g] = first[U(codes[r, g, 0]) | U(codes[r, g, 1]) << U(8)]
                    if size == 3:
                        buffer[1, g] = second[U(codes[r, g, 2])]
                    if size == 4:
                        buffer[1, g] = second[U(codes[r, g, 2]) | U(codes[r, g, size - 1]) << U(8)]
                for t in range(U(len(x))):
                    y, rest = np.float32(0), np.float32(0)
                    for c in range(U(words.shape[1])):
                        y += np.float32(words[0, c]) * x[t, c]
                    if size > 2:
                        for c in range(U(words.shape[1])):
                            rest += np.float32(words[1, c]) * x[t, c]
                    out[t, r] = unit * y + finer * rest

    return kernel
