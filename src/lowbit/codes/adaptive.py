"""Blocks as wide as the weights allow: where ranges change along a row scales are close together, elsewhere far apart.

    minimise  sum over blocks B of |B| sum_i s_iB^2,    s_iB = max |w| of row i in block B

over the partitions of the columns into a given number of blocks; s^2 / 12 is the error of a grid of step s. All rows
share the partition, and each has a scale in every block. Blocks are runs of the finest ones, so the best partition is a
shortest path, and equal blocks are one of those it is chosen from.

The finest block is `Lookup`'s group_size; `share` of these share a scale on average.

Bits per weight: b + 16 M / K + 1 / (N g) for M = ceil(K / (g share)) blocks, g the finest.
Paper: FineQuant (arXiv 2308.09723), which halves the blocks of a matrix while that shrinks its range by more than a
threshold. Differs: blocks of one matrix differ in width, and their number is given, so that what is stored is known
before the weights are.
Cost: N G^2 / 2 comparisons and M G^2 / 2 additions for G finest blocks a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.codes.lookup import working
from lowbit.codes.ranges import Levels
from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side


@dataclass(frozen=True)
class AdaptiveBlocks:
    """bits: 2 to 8, of a symmetric grid. share: finest blocks to a scale, on average, at least 1.

    Blocks are those of the original weights (`Lookup`'s scales are "static" in any case).
    """

    bits: int = 4
    share: int = 4

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 8, f"AdaptiveBlocks(bits={self.bits!r}): must be 2 to 8.")
        require(self.share >= 1, f"AdaptiveBlocks(share={self.share!r}): must be at least 1. Use 4.")

    def costs(self, problem: LayerProblem) -> Tensor | None:
        return None

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        return {
            "scale": Array((rows, -(-groups // self.share)), torch.float16),
            "block_start": Bits((groups,), 1),
        }

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        largest = groups.abs().amax(-1)
        starts = best_partition(largest, -(-largest.shape[1] // self.share))
        block = (starts.cumsum(0) - 1).expand_as(largest)
        extent = torch.zeros_like(largest[:, : int(starts.sum())]).scatter_reduce(1, block, largest, "amax")
        scale = self._levels.affine(-extent, extent)[0]
        require(
            bool(torch.isfinite(scale).all()),
            f"AdaptiveBlocks: weights up to {float(extent.max()):g} need scales beyond float16. Scale the layer "
            "(ChannelScales).",
        )
        return {"scale": scale, "block_start": starts}

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        return side

    def of(self, side: Side, at: Tensor) -> Tensor:
        scale, block = working(side["scale"]), side["block_start"].long().cumsum(0)
        require(
            int(block[0]) == 1 and int(block[-1]) == scale.shape[1],
            f"tensor block_start does not mark {scale.shape[1]} blocks, the first at the first column.",
        )
        scale = scale[:, block[at] - 1, None]
        return scale * (torch.arange(2**self.bits, dtype=scale.dtype) - self._levels.middle)

    @property
    def _levels(self) -> Levels:
        return Levels(self.bits, True, torch.float16)


def best_partition(largest: Tensor, blocks: int) -> Tensor:
    """Where the blocks begin, int64 [G] of zeros and ones, of the best partition of G columns into so many blocks.

    largest: [R, G], each row's largest weight in each column. Of equal partitions that whose last blocks are longest.
    """
    count = largest.shape[1]
    cost = torch.full((count, count + 1), torch.inf, dtype=torch.float64)  # of the block from i up to j
    for i in range(count):
        reach = largest[:, i:].cummax(1).values.double().square().sum(0)
        cost[i, i + 1 :] = reach * torch.arange(1, count - i + 1)
    least = cost[0]  # of so many blocks for the first j columns
    before = []
    for _ in range(blocks - 1):
        least, first = (least[:count, None] + cost).min(0)
        before.append(first)
    starts, end = torch.zeros(count, dtype=torch.int64), count
    for first in reversed(before):
        end = int(first[end])
        starts[end] = 1
    starts[0] = 1
    return starts
