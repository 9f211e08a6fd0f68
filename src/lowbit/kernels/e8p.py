"""The nearest word of the E8P codebook: 256 patterns of magnitudes, signs of fixed parity, a shift of all by +-1/4.

For one shift, with a = |x - shift| and m a pattern, signs may follow x freely but for their parity, so

    |x - shift - v|^2 = |a|^2 + |m|^2 - 2 a.m  (+ 4 min_i a_i m_i where the parity forces one sign to flip)

which is exact: 2 shifts x 256 patterns instead of 65536 words. Lanes run over patterns, sorted so that those of even
sum come first; for a given x the flip concerns exactly one of the two runs. Cost: about 500 vector instructions for 8
weights. `nearest_e8p_reference` compares with every word.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from lowbit.kernels.nearest import first_smallest

# Vectors that one thread handles at a time; for no more than these, waking other threads costs more.
_CHUNK = 512


def nearest_e8p_reference(x: Tensor, words: Tensor) -> Tensor:
    """Index [V] of the nearest of words [W, 8] to each x [V, 8]; the first of equals."""
    squared = words.square().sum(1)
    return torch.stack([(squared - 2 * words @ row).argmin() for row in x])


def nearest_e8p(x: Tensor, patterns: Tensor, even: int) -> Tensor:
    """Pattern and sign byte, uint8 [V, 2], of the word nearest to each x [V, 8], float32 or float64.

    patterns: [256, 8] in the type of x, positive half-integers, the first `even` of them of even sum. Sign byte: bit i
    of 0..6 set where coordinate i is negative (coordinate 7 follows from parity), bit 7 where the shift is -1/4.
    """
    codes = torch.empty(len(x), 2, dtype=torch.uint8)
    lanes = patterns.T.contiguous().numpy()
    arrays = (x.contiguous().numpy(), lanes, patterns.square().sum(1).numpy(), even, codes.numpy())
    if len(x) <= _CHUNK:
        _search(*arrays, 0, len(x))
    else:
        _search_in_parallel(*arrays)
    return codes


@numba.njit(parallel=True, cache=True)
def _search_in_parallel(x, lanes, squared, even, codes):  # type: ignore[no-untyped-def]
    for chunk in numba.prange(-(-len(x) // _CHUNK)):
        _search(x, lanes, squared, even, codes, chunk * _CHUNK, min(len(x), (chunk + 1) * _CHUNK))


@numba.njit(cache=True)
def _search(x, lanes, squared, even, codes, start, stop):  # type: ignore[no-untyped-def]
    score, a = np.empty_like(squared), np.empty_like(x[0])
    for v in range(start, stop):
        best = np.inf
        for negative_shift in range(2):
            shift = x.dtype.type(0.25 - 0.5 * negative_shift)
            signs, norm = 0, x.dtype.type(0)
            for i in range(8):
                y = x[v, i] - shift
                signs |= (y < 0) << i
                a[i] = abs(y)
                norm += y * y
            odd = _parity(signs)
            low, high = (0, even) if odd else (even, len(squared))
            _scores(a, lanes, squared, score)
            _add_flips(a, lanes, score, low, high)
            p = first_smallest(score)
            if score[p] + norm < best:
                best = score[p] + norm
                if low <= p < high:
                    signs ^= 1 << _weakest(a, lanes, p)
                codes[v, 0], codes[v, 1] = p, (signs & 127) | negative_shift << 7


@numba.njit(cache=True)
def _parity(bits):  # type: ignore[no-untyped-def]
    bits ^= bits >> 4
    bits ^= bits >> 2
    return (bits ^ bits >> 1) & 1


@numba.njit(cache=True)
def _scores(a, lanes, squared, score):  # type: ignore[no-untyped-def]
    for p in range(len(score)):
        dot = a[0] * lanes[0, p]
        for i in range(1, 8):
            dot += a[i] * lanes[i, p]
        score[p] = squared[p] - 2 * dot


@numba.njit(cache=True, fastmath={"nnan", "nsz"})
def _add_flips(a, lanes, score, start, stop):  # type: ignore[no-untyped-def]
    for p in range(start, stop):
        least = a[0] * lanes[0, p]
        for i in range(1, 8):
            least = min(least, a[i] * lanes[i, p])
        score[p] += 4 * least


@numba.njit(cache=True)
def _weakest(a, lanes, p):  # type: ignore[no-untyped-def]
    weakest = 0
    for i in range(1, 8):
        if a[i] * lanes[i, p] < a[weakest] * lanes[weakest, p]:
            weakest = i
    return weakest
