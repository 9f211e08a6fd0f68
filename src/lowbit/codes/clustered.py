"""Free levels, found by exact weighted k-means: a table for each group, or few tables that rows share.

    ClusteredLevels   minimise sum_j cost_j (w_j - nearest level)^2 in every group on its own (SqueezeLLM's dense part)
    SharedLevels      the same with T tables for the layer, each row using the one that serves it best (JLCM)

In one dimension the best levels can be computed (`lowbit.kernels.segments`), so nothing depends on a start. For
SharedLevels rows are first clustered by their quantiles, then tables and choices take turns, which never makes the sum
larger; what is kept is the index of each row's table, so no row has to move.

Bits per weight: b + 16 2^b / g, g the group size or K; shared: b + 16 T 2^b / (N K) + ceil(log2 T) / K.
Papers: SqueezeLLM (arXiv 2306.07629), JLCM (arXiv 2309.17361). Differs from SqueezeLLM: exact clusters where it takes
50 Lloyd iterations; sparse outliers are a side-car; beside each weight's Fisher entry its column's H_jj will do, which
takes no gradients (with F_ij = G_ii H_jj a row's G_ii changes nothing). From JLCM: an index for each row in place of a
permutation; codes are chosen by the rounder, not by gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.codes.importance import Importance, Weighed, check_importance
from lowbit.codes.kmeans import k_means
from lowbit.codes.lookup import as_float16, nearest_codes, replaced, working
from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.records import Side
from lowbit.kernels.segments import best_levels

_QUANTILES = 16
_TURNS = 10


@dataclass(frozen=True)
class ClusteredLevels(Weighed):
    """bits: 1 to 8. importance: what an error in each column or weight costs, see `codes.importance`."""

    bits: int = 3
    importance: Importance = "diagonal"

    linear_in = ("table",)

    def __post_init__(self) -> None:
        _check(self, self.bits, self.importance)

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        return {"table": Array((rows, groups, 2**self.bits), torch.float16)}

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        costs = torch.ones_like(groups) if importance is None else importance
        levels = best_levels(groups.flatten(0, 1), costs.flatten(0, 1), 2**self.bits)
        return {"table": as_float16(self, levels.to(groups.dtype)).view(*groups.shape[:2], -1)}

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        return replaced(side, self.fit(groups, importance), at)

    def of(self, side: Side, at: Tensor) -> Tensor:
        return working(side["table"])[:, at]


@dataclass(frozen=True)
class SharedLevels(Weighed):
    """bits: 1 to 8. tables: 1 to 256 for the layer; for whole rows (group_size "row"). importance: as above."""

    bits: int = 3
    tables: int = 16
    importance: Importance = "diagonal"

    linear_in = ("table",)

    def __post_init__(self) -> None:
        _check(self, self.bits, self.importance)
        require(1 <= self.tables <= 256, f"SharedLevels(tables={self.tables}): must be 1 to 256.")

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        require(groups == 1, "SharedLevels: rows share tables, groups of columns do not. Use group_size='row'.")
        width = max(1, (self.tables - 1).bit_length())
        return {"table": Array((self.tables, 2**self.bits), torch.float16), "table_of_row": Bits((rows,), width)}

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        rows = groups[:, 0]
        costs = torch.ones_like(rows) if importance is None else importance[:, 0]
        owner, least = self._alike(rows), float("inf")
        for _ in range(_TURNS):
            table = self._tables(rows, costs, owner)
            errors = torch.stack([_errors(rows, costs, one) for one in table])
            owner = errors.argmin(0)
            total = float(errors.amin(0).double().sum())
            if total >= least:
                break
            best, least = {"table": table, "table_of_row": owner}, total
        return best

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        return side

    def of(self, side: Side, at: Tensor) -> Tensor:
        return working(side["table"])[side["table_of_row"].long()][:, None]

    def _alike(self, rows: Tensor) -> Tensor:
        """Rows with similar quantiles together: the cluster of each, [N] int64."""
        levels = torch.linspace(0, 1, _QUANTILES, dtype=rows.dtype)
        features = torch.quantile(rows[:, :: -(-rows.shape[1] // 4096)], levels, dim=1).T.contiguous()
        centres = k_means(features, torch.ones_like(features), self.tables)
        return torch.cdist(features, centres).argmin(1)

    def _tables(self, rows: Tensor, costs: Tensor, owner: Tensor) -> Tensor:
        """The best table of each cluster of rows, [T, 2^bits]; one without rows takes a single row's."""
        found = []
        for one in range(self.tables):
            mine = owner == one
            mine = mine if bool(mine.any()) else torch.arange(len(rows)) == one % len(rows)
            found.append(best_levels(rows[mine].view(1, -1), costs[mine].reshape(1, -1), 2**self.bits))
        return as_float16(self, torch.cat(found).to(rows.dtype))


def _errors(rows: Tensor, costs: Tensor, table: Tensor) -> Tensor:
    """What each row would cost with a table, [N]."""
    values = nearest_codes(rows[:, None], table.expand(len(rows), 1, -1))[1][:, 0]
    return (costs * (rows - values).square()).sum(1)


def _check(part: object, bits: int, importance: Importance) -> None:
    require(isinstance(bits, int) and 1 <= bits <= 8, f"{type(part).__name__}(bits={bits!r}): must be 1 to 8.")
    check_importance(part, importance)
