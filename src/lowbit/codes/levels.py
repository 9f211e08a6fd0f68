"""Sets of levels as data: what a scalar format can store, up to a scale.

    e2m1      floating point, exponent and mantissa bits: 0 .5 1 1.5 2 3 4 6 and their negatives; no Inf, no NaN
    int4      whole numbers -8..7
    nf4       quantiles of the normal distribution, zero among them (NormalFloat)
    dint4     whole numbers -7..6 and the two halves around zero (denormal integers)
    power4:a  sign(k) |k / 7|^(1 / a) for k = -7..7: equidistant after raising to the power a
    ternary   -1 0 1         binary   -1 1
    or the numbers themselves, "-1, 0, 0.25, 1"

The position of a level is its code. Floats are listed by their bits, sign first, so that the code is the format's own
and -0 has one; they are listed in units where the smallest normal exponent is that of bias max(1, 2^(E-1) - 1).

Papers: LLM-FP4 (arXiv 2310.16836), ZeroQuant(4+2) (2312.08583), OCP Microscaling (2310.10537), QLoRA (2305.14314),
AQAS, SLAC and dINT (2311.05161), PowerQuant and NUPES (2308.05600).
"""

import functools
import math
import re
from collections.abc import Callable

import torch

from lowbit.core.errors import BadRequest, require

_LARGEST_COUNT = 256


@functools.cache
def level_set(name: str) -> tuple[float, ...]:
    """The 2 to 256 levels of a name above, in the order of their codes; raises BadRequest where there is none such."""
    levels = _named(name.strip().lower())
    require(
        2 <= len(set(levels)) <= len(levels) <= _LARGEST_COUNT,
        f"levels={name!r}: {len(set(levels))} different ones; must be 2 to {_LARGEST_COUNT}.",
    )
    require(any(levels), f"levels={name!r}: one at least must differ from zero.")
    return levels


def float_levels(exponent: int, mantissa: int) -> tuple[float, ...]:
    """By bit pattern. exponent: 1 to 5 bits, mantissa: 0 to 6."""
    bias = max(1, 2 ** (exponent - 1) - 1)
    positive = []
    for code in range(2 ** (exponent + mantissa)):
        power, fraction = code >> mantissa, (code & 2**mantissa - 1) / 2**mantissa
        positive.append(2.0 ** (power - bias) * (1 + fraction) if power else 2.0 ** (1 - bias) * fraction)
    return (*positive, *(0.0 if level == 0 else -level for level in positive))


def normal_levels(bits: int) -> tuple[float, ...]:
    """Normal quantiles on both sides of zero, one more above it, the outermost at -1 and 1 (QLoRA's NormalFloat)."""
    half = 2 ** (bits - 1)
    offset = 1 - (0.25 / (2 * half) + 0.25 / (2 * half - 1))
    above = _quantiles(offset, half + 1)
    below = [-x for x in _quantiles(offset, half)]
    return tuple(sorted([*below, 0.0, *above]))


def _quantiles(offset: float, count: int) -> list[float]:
    """The positive ones of `count` normal quantiles at equal steps from `offset` to 1/2, over the largest."""
    at = torch.linspace(offset, 0.5, count, dtype=torch.float64)[:-1]
    x = torch.special.ndtri(at)
    return (x / x[0]).tolist()


def denormal_levels(bits: int) -> tuple[float, ...]:
    top = 2 ** (bits - 1) - 1
    return tuple(sorted([*map(float, range(-top, top)), -0.5, 0.5]))


def power_levels(bits: int, exponent: float) -> tuple[float, ...]:
    top = 2 ** (bits - 1) - 1
    positive = [(k / top) ** (1 / exponent) for k in range(1, top + 1)]
    return (*(-x for x in reversed(positive)), 0.0, *positive)


_FIXED = {"ternary": (-1.0, 0.0, 1.0), "binary": (-1.0, 1.0)}
_COUNTED: dict[str, tuple[Callable[[int], tuple[float, ...]], range]] = {
    "int": (lambda bits: tuple(float(q) for q in range(-(2 ** (bits - 1)), 2 ** (bits - 1))), range(2, 9)),
    "nf": (normal_levels, range(2, 9)),
    "dint": (denormal_levels, range(2, 9)),
}


def _named(name: str) -> tuple[float, ...]:
    if name in _FIXED:
        return _FIXED[name]
    if match := re.fullmatch(r"e([1-5])m([0-6])", name):
        return float_levels(int(match[1]), int(match[2]))
    if (match := re.fullmatch(r"([a-z]+)([1-9])", name)) and match[1] in _COUNTED:
        make, allowed = _COUNTED[match[1]]
        if int(match[2]) in allowed:
            return make(int(match[2]))
    if (match := re.fullmatch(r"power([2-8]):([0-9.]+)", name)) and _number(match[2]) > 0:
        return power_levels(int(match[1]), _number(match[2]))
    numbers = tuple(_number(word) for word in name.split(","))
    if len(numbers) > 1 and all(map(math.isfinite, numbers)):
        return numbers
    raise BadRequest(
        f"levels={name!r}: unknown. Use a float such as e2m1 (exponent 1 to 5, mantissa 0 to 6), int2 to int8, "
        "nf2 to nf8, dint2 to dint8, power4:0.5, ternary, binary, or numbers with commas between."
    )


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
