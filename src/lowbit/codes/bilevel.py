"""Bilevel scales: super-blocks of as many groups as a layer has room for, up to a number.

The steps and minima of small groups cost more than what they save unless they are stored in few bits. Super-blocks do
that, but want their number of groups to divide a row's; here the largest that does is taken, so one setting fits all
layers of a model, and the bits per weight of each say what it came to.

Bits per weight: b + 2 c / g + 32 / (g n) for n groups a super-block and c bits a step or minimum.
Paper: SpQR (arXiv 2306.03078), its second level of quantization. Differs from its code: a super-block is of one row's
groups, where theirs is of 16 rows', and so can be multiplied row by row; no zero point of its own.
"""

from dataclasses import dataclass

from lowbit.codes.importance import Importance
from lowbit.codes.lookup import Lookup
from lowbit.codes.superblocks import SuperBlocks
from lowbit.core.errors import BadRequest, divisors_near, require
from lowbit.core.parts import Code


@dataclass(frozen=True)
class Bilevel:
    """bits, scale_bits, importance: as in SuperBlocks. group_size: columns. count: groups of a super-block, at most."""

    bits: int = 3
    group_size: int = 16
    scale_bits: int = 3
    count: int = 16
    importance: Importance = "conditional"

    def __post_init__(self) -> None:
        require(self.group_size >= 1, f"Bilevel(group_size={self.group_size}): must be at least 1. Use 16.")
        SuperBlocks(self.bits, self.scale_bits, self.count, importance=self.importance)  # which checks the others

    def at(self, shape: tuple[int, int]) -> Code:
        groups, rest = divmod(shape[1], self.group_size)
        if rest:
            raise BadRequest(
                f"Bilevel(group_size={self.group_size}) does not divide the {shape[1]} inputs of a {list(shape)} "
                f"layer. Use {divisors_near(self.group_size, shape[1])}."
            )
        count = max(n for n in range(1, self.count + 1) if groups % n == 0)
        return Lookup(SuperBlocks(self.bits, self.scale_bits, count, importance=self.importance), self.group_size)
