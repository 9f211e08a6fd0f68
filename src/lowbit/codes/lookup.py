"""Table look-up: every group of weights has a table of 2^b levels, every weight is one of them.

    value = table[group][code]

Everything scalar is of this kind, and formats differ only in how the tables are stored and found, which is what a
`Tables` answers: one fixed table times a scale, a table for each row, a sum of few directions, sums of binary planes.
Rounding, feedback and decoding are here once for all of them.

Bits per weight: b, each row filled up to a byte, and what the tables say.
Cost: b comparisons a weight to encode, a gather to decode.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lowbit.codes.groups import GroupSize, check_divides, check_group_size, group_of, grouped, side_shape
from lowbit.core.errors import require
from lowbit.core.fields import Bits, Field
from lowbit.core.parts import linear_fields
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side
from lowbit.kernels.tables import round_nearest, round_slab


@runtime_checkable
class Tables(Protocol):
    """How the tables of groups are stored and found. R rows of G groups of columns, g weights each.

    bits: of a code, 1 to 8. Side tensors of groups are [R, G, ...], float32 or float64 while they are worked on.
    """

    @property
    def bits(self) -> int: ...

    def costs(self, problem: LayerProblem) -> Tensor | None:
        """What an error in each column costs, [K], or in each weight, [N, K], or None for all the same."""
        ...

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        """What is stored beside the codes."""
        ...

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        """Tables for weights [R, G, g]; importance: [R, G, g], or None."""
        ...

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        """Side information with the groups `at`, int64 [G'], found anew from weights [R, G', g]."""
        ...

    def of(self, side: Side, at: Tensor) -> Tensor:
        """The tables of the groups `at`, [R, G', 2^bits], by code, as `side` stands or as it was read back."""
        ...


@dataclass(frozen=True)
class Lookup:
    """tables: of each group. group_size: columns of a row that share one, or "row", or "tensor".

    scales: "dynamic" finds a group's table anew from the error-compensated weights when a rounder reaches it, "static"
    keeps that of the original weights; the same for "row" and "tensor".
    """

    tables: Tables
    group_size: GroupSize = "row"
    scales: Literal["dynamic", "static"] = "dynamic"

    tile = (1, 1)

    def __post_init__(self) -> None:
        check_group_size(self, self.group_size)
        require(self.scales in ("dynamic", "static"), f'Lookup(scales={self.scales!r}): must be "dynamic" or "static".')

    @property
    def refit_every(self) -> int:
        return self.group_size if isinstance(self.group_size, int) and self.scales == "dynamic" else 0

    @property
    def linear_in(self) -> tuple[str, ...]:
        return linear_fields(self.tables)

    def check(self, shape: tuple[int, int]) -> None:
        check_divides(self, self.group_size, shape)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {"codes": Bits(shape, self.tables.bits), **self.tables.fields(*side_shape(self.group_size, shape))}

    def fit(self, problem: LayerProblem) -> Side:
        importance = self.tables.costs(problem)
        groups, costs = self._grouped(problem.weight, importance)
        side = self.tables.fit(groups, costs)
        return side if importance is None else {**side, "importance": importance}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        importance = side.get("importance")
        groups, costs = self._grouped(target, None if importance is None else importance[..., columns])
        return self.tables.refit(side, groups, costs, group_of(self.group_size, columns)[:: self.refit_every])

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        levels, group = self._levels(side, columns)
        ascending, order = levels.sort(dim=-1, stable=True)
        ranks, values = round_nearest(target, ascending, group)
        return _picked(order, ranks, group).to(torch.uint8), values

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        levels, group = self._levels(side, columns)
        ascending, order = levels.sort(dim=-1, stable=True)
        ranks, values = round_slab(weight, target, feedback, ascending, group)
        return _picked(order, ranks, group).to(torch.uint8), values

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        levels, group = self._levels(side, columns)
        return _picked(levels, codes, group)

    def half_widths(self, side: Side, columns: Tensor) -> Tensor:
        """Half the widest gap of each weight's table, see `lowbit.core.cells`."""
        levels, group = self._levels(side, columns)
        return levels.sort(dim=-1)[0].diff(dim=-1).amax(-1)[:, group] / 2

    def _levels(self, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The tables that the columns use, [R, G', 2^bits], and the index among them of each column's."""
        used, group = torch.unique(group_of(self.group_size, columns), return_inverse=True)
        return self.tables.of(side, used), group

    def _grouped(self, weight: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows, groups = side_shape(self.group_size, (weight.shape[0], weight.shape[1]))
        costs = None if importance is None else grouped(importance.expand_as(weight), rows, groups)
        return grouped(weight, rows, groups), costs


def nearest_codes(groups: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Code, int64, and value of each weight [R, G, g] in tables [R, G, L], in any order of levels."""
    rows, weights = tables.shape[0] * tables.shape[1], groups.shape[-1]
    ascending, order = tables.reshape(rows, 1, -1).sort(dim=-1, stable=True)
    ranks, values = round_nearest(groups.reshape(rows, weights), ascending, torch.zeros(weights, dtype=torch.int64))
    return order[:, 0].gather(1, ranks.long()).view(groups.shape), values.view(groups.shape)


def as_float16(part: object, tensor: Tensor) -> Tensor:
    """Rounded to float16, in its own type; raises BadRequest where that cannot hold it, naming `part`."""
    rounded = tensor.half().to(tensor.dtype)
    require(
        bool(torch.isfinite(rounded).all()),
        f"{type(part).__name__}: weights up to {float(tensor.abs().max()):g} do not fit the float16 that its levels "
        "are stored in. Scale the layer (ChannelScales) or use ScaledLevels with bfloat16 scales.",
    )
    return rounded


def working(stored: Tensor) -> Tensor:
    """A side tensor as numbers to calculate with: float64 as it is, anything else float32."""
    return stored if stored.dtype == torch.float64 else stored.float()


def replaced(side: Side, found: Side, at: Tensor) -> Side:
    """`side` with the tensors of `found`, [R, G', ...], in the place of the groups `at`."""
    new = dict(side)
    for name, tensor in found.items():
        new[name] = side[name].clone()
        new[name][:, at] = tensor
    return new


def _picked(tables: Tensor, index: Tensor, group: Tensor) -> Tensor:
    """tables[row, group, index] for index [N, w]; one row of tables may serve all."""
    n = len(index)
    rows = torch.arange(n, device=index.device) if len(tables) > 1 else torch.zeros(n, dtype=torch.int64)
    return tables[rows[:, None].to(index.device), group, index.long()]
