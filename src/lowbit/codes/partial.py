"""Partial binarisation: a few salient weights of every row at eight bits, all others one bit.

    salience of a weight = w^2 d_j,     H = A diag(d) A^T

Each row keeps the same number of salient weights, marked in a mask. The others take the nearer of two levels of their
group, the best two there are for them (exact weighted 2-means); the salient ones lie on a grid over their own range.
The mask is chosen before rounding starts and stays; levels are found anew for each group as rounding reaches it.

Bits per weight: 2 + 7 c / K + 32 / g + 32 / K for c salient weights a row: a bit each and a bit of mask, seven more for
the salient ones, two float16 levels a group and two float16 numbers a row.
Paper: PB-LLM (arXiv 2310.00034). Differs from its code: statistics leave salient weights out, where theirs count them
as zeros (which makes levels too small); every row has the same share; the salient grid is float16 and the mask counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.codes.groups import GroupSize, check_divides, check_group_size, group_of, grouped, side_shape
from lowbit.codes.importance import Importance, Weighed, check_importance, costs_for
from lowbit.codes.lookup import as_float16, replaced, working
from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.parts import encode_tiles
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side
from lowbit.kernels.segments import best_levels

_TOP = 255


@dataclass(frozen=True)
class PartialBinary(Weighed):
    """fraction: of each row's weights that are salient, above 0 to 1. group_size: columns of a row that share levels.

    importance: of columns, or of single weights, for salience and for levels; "none" ranks weights by magnitude.
    """

    fraction: float = 0.1
    group_size: GroupSize = 128
    importance: Importance = "conditional"

    tile = (1, 1)
    bits = 8

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, f"PartialBinary(fraction={self.fraction}): must be above 0, to 1. Use 0.1.")
        check_group_size(self, self.group_size)
        check_importance(self, self.importance)

    @property
    def refit_every(self) -> int:
        return self.group_size if isinstance(self.group_size, int) else 0

    def check(self, shape: tuple[int, int]) -> None:
        check_divides(self, self.group_size, shape)

    def salient_count(self, columns: int) -> int:
        """How many weights of a row are salient, at least one."""
        return max(1, round(self.fraction * columns))

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        n, k = shape
        return {
            "codes": Bits((n, 1, k), 1),
            "salient_codes": Bits((n, self.salient_count(k)), 7),
            "salient": Bits((n, k), 1),
            "levels": Array((*side_shape(self.group_size, shape), 2), torch.float16),
            "salient_grid": Array((n, 2), torch.float16),
        }

    def to_fields(self, codes: Tensor, side: Side) -> dict[str, Tensor]:
        salient = side["salient"].bool()
        return {"codes": (codes & 1)[:, None], "salient_codes": (codes[salient] >> 1).view(len(codes), -1)}

    def from_fields(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        codes, salient = tensors["codes"].reshape(shape).clone(), tensors["salient"].reshape(shape).bool()
        require(
            int(salient.sum()) == tensors["salient_codes"].numel(),
            "PartialBinary: the mask marks another number of salient weights than are stored.",
        )
        codes[salient] |= tensors["salient_codes"].flatten() << 1
        return codes

    def fit(self, problem: LayerProblem) -> Side:
        weight, costs = problem.weight, costs_for(self, problem, self.importance)
        count = self.salient_count(weight.shape[1])
        chosen = (costs * weight.square()).argsort(dim=1, descending=True, stable=True)[:, :count]
        salient = torch.zeros_like(weight, dtype=torch.uint8).scatter(1, chosen, 1)
        kept = weight.gather(1, chosen)
        low, high = kept.amin(1), kept.amax(1)
        grid = torch.stack((low, ((high - low) / _TOP).clamp_min(2.0**-24)), 1)
        return {
            "salient": salient,
            "importance": costs,
            "levels": self._levels(weight, costs, salient),
            "salient_grid": as_float16(self, grid),
        }

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        levels = self._levels(target, side["importance"][..., columns], side["salient"][:, columns])
        return replaced(side, {"levels": levels}, group_of(self.group_size, columns)[:: self.refit_every])

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        low, step = side["salient_grid"][:, :1], side["salient_grid"][:, 1:]
        fine = ((target - low) / step).round().clamp(0, _TOP)
        middle = side["levels"].mean(-1)[:, group_of(self.group_size, columns)]
        codes = torch.where(side["salient"][:, columns].bool(), fine, (target > middle).to(fine)).to(torch.uint8)
        return codes, self.decode(codes, side, columns)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return encode_tiles(self, weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        grid, levels = working(side["salient_grid"]), working(side["levels"])[:, group_of(self.group_size, columns)]
        coarse = torch.where((codes & 1).bool(), levels[..., 1], levels[..., 0])
        fine = grid[:, :1] + grid[:, 1:] * codes.to(grid.dtype)
        return torch.where(side["salient"].view(len(codes), -1)[:, columns].bool(), fine, coarse)

    def _levels(self, weight: Tensor, costs: Tensor, salient: Tensor) -> Tensor:
        """The two levels of each group, [R, G, 2], for the weights that are not salient."""
        rows, groups = side_shape(self.group_size, (weight.shape[0], weight.shape[1]))
        mass = grouped(costs * (1 - salient.to(costs.dtype)), rows, groups).flatten(0, 1)
        levels = best_levels(grouped(weight, rows, groups).flatten(0, 1), mass, 2)
        return as_float16(self, levels.to(weight.dtype)).view(rows, groups, 2)
