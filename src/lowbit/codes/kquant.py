"""The K-quants of llama.cpp, so that what any rounder makes of them goes over into a GGUF file as it is.

    type   bits   groups of   step, minimum   bits per weight
    Q2_K   2      16          4 bits each     2.625
    Q3_K   3      16          6 bits, none    3.4375
    Q4_K   4      32          6 bits each     4.5
    Q5_K   5      32          6 bits each     5.5
    Q6_K   6      16          8 bits, none    6.5625

All are super-blocks (`codes.superblocks`) of 256 columns. Where these do not divide the inputs, blocks of 32 serve,
with one float16 step each, of either sign: Q4_0 in place of 2 and 3 bits (4.5 bits per weight), Q5_0 of 4 and 5 (5.5),
Q8_0 of 6 (8.5). llama.cpp's own quantizer falls back on the same types or on their like (IQ4_NL, Q5_1).
"""

from dataclasses import dataclass
from typing import Literal

from lowbit.codes.importance import Importance
from lowbit.codes.lookup import Lookup
from lowbit.codes.ranges import HessianRange
from lowbit.codes.scaled import ScaledLevels
from lowbit.codes.superblocks import SuperBlocks
from lowbit.core.errors import BadRequest, require
from lowbit.core.parts import Code

SUPER_BLOCK = 256
"""Columns of a super-block."""

K_QUANTS = {2: (16, 4, False), 3: (16, 6, True), 4: (32, 6, False), 5: (32, 6, False), 6: (16, 8, True)}
"""By bits: columns of a group, bits of its step and minimum, whether symmetric."""

SMALL_BLOCK = 32
_INSTEAD = {2: 4, 3: 4, 4: 5, 5: 5, 6: 8}


@dataclass(frozen=True)
class KQuant:
    """bits: 2 to 6. importance: what an error in a column costs. scales: as in `Lookup`."""

    bits: int = 4
    importance: Importance = "conditional"
    scales: Literal["dynamic", "static"] = "dynamic"

    def __post_init__(self) -> None:
        require(self.bits in K_QUANTS, f"KQuant(bits={self.bits!r}): must be {', '.join(map(str, K_QUANTS))}.")

    def at(self, shape: tuple[int, int]) -> Code:
        n, k = shape
        size, scale_bits, symmetric = K_QUANTS[self.bits]
        if k % SUPER_BLOCK == 0:
            tables = SuperBlocks(self.bits, scale_bits, SUPER_BLOCK // size, symmetric, self.importance)
            return Lookup(tables, size, self.scales)
        if k % SMALL_BLOCK == 0:
            signed = ScaledLevels(f"int{_INSTEAD[self.bits]}", range=HessianRange(0.5, 20))
            return Lookup(signed, SMALL_BLOCK, self.scales)
        raise BadRequest(
            f"KQuant({self.bits}): the {k} inputs of a [{n}, {k}] layer are no multiple of {SMALL_BLOCK}, and "
            "llama.cpp has no block type for such. Leave the layer alone (--ignore), or use optq and another format."
        )
