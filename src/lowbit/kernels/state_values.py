"""What the states of a trellis stand for, as its kernels see it: numbers of a table, or computed from the state's bits.

    h = multiplier * state + increment mod 2^32

    "byte sum"   (sum of the four bytes of h, less 510) / unit + offset
    "half sum"   (sum of the halves of (h & 0x8FFF8FFF) ^ 0x3B603B60 as float16) / unit + offset
    "rounded half sum"   the same, the sum rounded to float16

They take a multiplication and a few shifts, where a table of 2^16 numbers leaves the first-level cache.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class StateValues:
    """multiplier, increment: below 2^32. For a table all else is of no interest."""

    kind: Literal["table", "byte sum", "half sum", "rounded half sum"] = "table"
    multiplier: int = 0
    increment: int = 0
    unit: float = 1.0
    offset: float = 0.0


FROM_TABLE = StateValues()
