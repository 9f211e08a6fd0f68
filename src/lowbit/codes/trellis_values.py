"""What a trellis state stands for: functions from L-bit states to V numbers, as tables [2^L, V].

Neighbouring states share all but a few bits, so the numbers must look unrelated: a hash of the state, shaped to a
Gaussian. All tables have zero mean and unit variance, nearly; the same numbers come out on every machine (integer
arithmetic, or values rounded to 1/4096 where a logarithm was taken), because stored weights depend on them.

    1mad      sum of the four bytes of 34038481 s + 76625530 (mod 2^32), less 510, over 147.800537
    mul1      the same of 0x83DCD12D s: no addition, so an int8 dot product can take the bytes as they are
    3inst     sum of the halves of (89226354 s + 64248484 & 0x8FFF8FFF) ^ 0x3B603B60 as two float16
    exl3-mul1, exl3-mcg, exl3-3inst
              EXL3's to the last bit: (1774 (sum of bytes of mul1) - 905216) / 2^18, and the sum of the halves of
              0xCBAC1FED s, or of 3inst's word, made likewise; these two deviate by 1.244
    hyb       V = 2: 512 pairs found by k-means, picked by bits 6..14 of s (s + 1), bit 15 the sign of the first
    gaussian  independent normal numbers, any V
    strata    V = 1: the 2^L quantiles of a normal, dealt out so that the 2^b states which lead to the same next ones,
              and those which come from the same one, take one number from each of 2^b equal strata

`strata` is a table, and the best there is: its error at L = 16 is that of `gaussian` at L = 18, a quarter of the time
(2 bits 0.0673, 3 bits 0.0171, 4 bits 0.0043). It is set partitioning (Ungerboeck 1982) in a bitshift trellis: with d
the highest and c the lowest b bits of a state, its stratum is (d + c + hash of the bits between) mod 2^b.

Papers: QTIP (arXiv 2406.11235), section 3.2 (1mad, 3inst, hyb; its "random Gaussian" is `gaussian`); mul1, mcg and
their constants are ExLlamaV3's, whose kernels round the values once more, to float16. Differs: 3inst is divided by its
standard deviation; the pairs of hyb are our own, from a fixed seed and with unit variance; strata is ours.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require


class Hash(NamedTuple):
    """Of a state s: multiplier s + increment mod 2^32; what is made of it is divided by `unit`."""

    multiplier: int
    increment: int
    unit: float


HASHES = {
    "1mad": Hash(34038481, 76625530, 147.800537),
    "mul1": Hash(0x83DCD12D, 0, 147.800537),
    "3inst": Hash(89226354, 64248484, 1.24371),
    "mcg": Hash(0xCBAC1FED, 0, 1.0),
}
"""Of the values that kernels compute from the state."""

_GRID = 4096
_PAIRS = 512
_KMEANS_POINTS, _KMEANS_ROUNDS = 1 << 14, 12


def _states(length: int) -> np.ndarray:
    return np.arange(1 << length, dtype=np.uint64)


def _byte_sum(words: np.ndarray) -> np.ndarray:
    words = words & np.uint64(0xFFFFFFFF)
    return sum((words >> np.uint64(shift)) & np.uint64(255) for shift in (0, 8, 16, 24)).astype(np.float64)  # type: ignore[union-attr]


def _hash_of(name: str, length: int) -> np.ndarray:
    return _states(length) * np.uint64(HASHES[name].multiplier) + np.uint64(HASHES[name].increment)


def _one_mad(length: int, dimension: int, bits: int) -> np.ndarray:
    return (_byte_sum(_hash_of("1mad", length)) - 510) / HASHES["1mad"].unit


def _mul1(length: int, dimension: int, bits: int) -> np.ndarray:
    return (_byte_sum(_hash_of("mul1", length)) - 510) / HASHES["mul1"].unit


def _three_inst(length: int, dimension: int, bits: int) -> np.ndarray:
    halves = _halves(_hash_of("3inst", length))
    return (halves[:, 1] + halves[:, 0]).astype(np.float64) / HASHES["3inst"].unit


def _halves(words: np.ndarray) -> np.ndarray:
    """float16 [len(words), 2]: signs and mantissas of the halves of 32-bit words, their exponents near one half."""
    words = words.astype(np.uint32)
    return ((words & np.uint32(0x8FFF8FFF)) ^ np.uint32(0x3B603B60)).view(np.float16).reshape(-1, 2)


def _exl3_mul1(length: int, dimension: int, bits: int) -> np.ndarray:
    return (1774 * _byte_sum(_hash_of("mul1", length)) - 905216) / (1 << 18)


def _exl3_mcg(length: int, dimension: int, bits: int) -> np.ndarray:
    return _halves(_hash_of("mcg", length)).astype(np.float64).sum(1)


def _exl3_three_inst(length: int, dimension: int, bits: int) -> np.ndarray:
    return _halves(_hash_of("3inst", length)).astype(np.float64).sum(1)


def _hyb(length: int, dimension: int, bits: int) -> np.ndarray:
    states = _states(length)
    hashed = states * (states + np.uint64(1))
    pairs = _gaussian_pairs()[((hashed >> np.uint64(6)) & np.uint64(_PAIRS - 1)).astype(np.int64)]
    sign = np.where((hashed >> np.uint64(15)) & np.uint64(1), -1.0, 1.0)
    return pairs * np.stack([sign, np.ones_like(sign)], 1)


def _gaussian(length: int, dimension: int, bits: int) -> np.ndarray:
    return _on_grid(_normal(dimension << length, seed=1).reshape(-1, dimension))


def _strata(length: int, dimension: int, bits: int) -> np.ndarray:
    require(
        2 * bits <= length,
        f"Trellis values 'strata' need L >= 2 k V, got L={length} with k V = {bits}. Raise L, or use gaussian.",
    )
    count, branches = 1 << length, np.uint64(1 << bits)
    states = _states(length)
    between = _hashed(count >> 2 * bits, seed=3)[(states >> np.uint64(bits)) % np.uint64(count >> 2 * bits)]
    stratum = ((states >> np.uint64(length - bits)) + states + between) % branches
    rank = np.empty(count)
    rank[np.lexsort((_hashed(count, seed=4), stratum))] = np.arange(count)
    return _on_grid(_standard((rank + 0.5) / count))


def _normal(count: int, seed: int) -> np.ndarray:
    """Normal numbers, standardised."""
    return _standard(((_hashed(count, seed) >> np.uint64(11)).astype(np.float64) + 0.5) / (1 << 53))


def _hashed(count: int, seed: int) -> np.ndarray:
    """Words of 64 bits: a counter, hashed (splitmix64)."""
    z = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _standard(uniform: np.ndarray) -> np.ndarray:
    """The normal quantiles of numbers in (0, 1), standardised."""
    normal = torch.special.ndtri(torch.from_numpy(uniform)).numpy()
    return (normal - normal.mean()) / normal.std()


def _on_grid(values: np.ndarray) -> np.ndarray:
    return np.round(values * _GRID) / _GRID


@functools.cache
def _gaussian_pairs() -> np.ndarray:
    """Centres [512, 2] of the half plane of normal pairs with a positive first coordinate, of unit variance."""
    points = _on_grid(_normal(2 * _KMEANS_POINTS, seed=2)).reshape(-1, 2)
    points[:, 0] = np.abs(points[:, 0])
    centres = points[:_PAIRS].copy()
    for _ in range(_KMEANS_ROUNDS):
        squared = (points[:, None, 0] - centres[None, :, 0]) ** 2 + (points[:, None, 1] - centres[None, :, 1]) ** 2
        nearest = squared.argmin(1)
        counts = np.bincount(nearest, minlength=_PAIRS)
        sums = np.stack([np.bincount(nearest, points[:, i], _PAIRS) for i in (0, 1)], 1)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return _on_grid(centres / np.sqrt((centres**2).mean()))


VALUES: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "1mad": _one_mad,
    "mul1": _mul1,
    "3inst": _three_inst,
    "exl3-mul1": _exl3_mul1,
    "exl3-mcg": _exl3_mcg,
    "exl3-3inst": _exl3_three_inst,
    "hyb": _hyb,
    "gaussian": _gaussian,
    "strata": _strata,
}


@functools.cache
def value_table(name: str, length: int, dimension: int, bits: int) -> Tensor:
    """The table [2^length, dimension], float32, of a function in VALUES, for a trellis of `bits` bits a step.

    Raises BadRequest where there is none of that name and dimension, or where its table is unfit for use.
    """
    if name not in VALUES:
        raise BadRequest(f"No trellis values named {name!r}. Use one of {', '.join(VALUES)}.")
    array = VALUES[name](length, dimension, bits)
    table = torch.from_numpy(array.reshape(len(array), -1).astype(np.float32))
    check_table(table, name, length, dimension)
    return table


def check_table(table: Tensor, name: str, length: int, dimension: int) -> None:
    """Raise BadRequest unless `table` is finite, [2^length, dimension], and near zero mean and unit variance."""
    expected = [1 << length, dimension]
    require(
        list(table.shape) == expected,
        f"Trellis values {name!r} give a table {list(table.shape)} for L={length}, V={dimension}, not {expected}. "
        "hyb has V=2, 1mad, 3inst and mul1 have V=1, gaussian has any.",
    )
    require(bool(torch.isfinite(table).all()), f"Trellis values {name!r} are not all finite for L={length}.")
    mean, deviation = float(table.mean()), float(table.std(correction=0))
    require(
        abs(mean) <= 0.1 and 0.75 <= deviation <= 1.3,
        f"Trellis values {name!r} have mean {mean:.3g} and standard deviation {deviation:.3g} for L={length}; they "
        "must be near 0 and 1. Scale the function, or use a larger L or gaussian.",
    )
