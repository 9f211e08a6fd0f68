"""Low-rank codebooks: the tables of all groups together are a matrix of small rank.

    table of a group = offset + sum_r s_r V_r,     V [rank, 2^b] for the layer,  offset and s_r a group's own

Rank 1 with equidistant V is the affine integer grid, rank 2^b - 1 a free table for each group. In between, a few
numbers a group bend the grid where plain scales cannot. V starts from the singular directions of the groups' best
tables (`lowbit.kernels.segments`); codes, groups' numbers and V then take turns, each a weighted least-squares problem.

Bits per weight: b + 16 (rank + 1) / g + 16 rank 2^b / (N K).
Paper: LCQ (arXiv 2405.20973). Differs (no code is public): weights are fitted, weighted by what an error in their
column costs, where LCQ trains on block outputs; the groups' numbers are float16 where LCQ quantizes them again.
Cost: `turns` encodings of the layer and exact k-means of every group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.codes.importance import Importance, Weighed, check_importance
from lowbit.codes.linear import best_theta, costs_of, given
from lowbit.codes.lookup import as_float16, replaced, working
from lowbit.core.errors import require
from lowbit.core.fields import Array, Field
from lowbit.core.linalg import one_thread
from lowbit.core.records import Side
from lowbit.kernels.segments import best_levels


@dataclass(frozen=True)
class LowRankLevels(Weighed):
    """bits: 1 to 8. rank: 1 to 2^bits - 1. turns: >= 0. importance: what an error in each column costs."""

    bits: int = 2
    rank: int = 2
    turns: int = 8
    importance: Importance = "conditional"

    linear_in = ("coefficients",)

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 8, f"LowRankLevels(bits={self.bits!r}): must be 1 to 8.")
        require(
            1 <= self.rank <= 2**self.bits - 1,
            f"LowRankLevels(rank={self.rank}): must be 1 to {2**self.bits - 1}, which is a free table for each group.",
        )
        require(self.turns >= 0, f"LowRankLevels(turns={self.turns}): must be at least 0. Use 8.")
        check_importance(self, self.importance)

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        return {
            "basis": Array((self.rank, 2**self.bits), torch.float16),
            "coefficients": Array((rows, groups, self.rank + 1), torch.float16),
        }

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        costs = torch.ones_like(groups) if importance is None else importance
        with one_thread():
            own = self._own_tables(groups, costs)
            basis, least = self._first_basis(own).to(groups.dtype), float("inf")
            for _ in range(self.turns + 1):
                side = self._taken(groups, costs, basis, own)
                codes, cost = costs_of(groups, costs, self._tables(side["coefficients"], basis))
                if float(cost.double().sum()) >= least:
                    break
                best, least = side, float(cost.double().sum())
                basis = self._better_basis(*given(groups, costs, codes, 2**self.bits), side)
        return best

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        costs = torch.ones_like(groups) if importance is None else importance
        with one_thread():
            found = self._taken(groups, costs, side["basis"], self._own_tables(groups, costs))
        return replaced(side, {"coefficients": found["coefficients"]}, at)

    def of(self, side: Side, at: Tensor) -> Tensor:
        return self._tables(working(side["coefficients"])[:, at], working(side["basis"]))

    def _own_tables(self, groups: Tensor, costs: Tensor) -> Tensor:
        """The best table of each group, [R, G, L] float64."""
        tables = best_levels(groups.flatten(0, 1), costs.flatten(0, 1), 2**self.bits)
        return tables.view(*groups.shape[:2], -1)

    def _first_basis(self, tables: Tensor) -> Tensor:
        """The directions [rank, L] in which tables [R, G, L] differ most, each with a largest entry of 1; as stored."""
        centred = (tables - tables.mean(-1, keepdim=True)).flatten(0, 1)
        vectors = torch.linalg.eigh(centred.T @ centred)[1].flip(1).T[: self.rank]
        return _normalised(self, vectors)

    def _taken(self, groups: Tensor, costs: Tensor, basis: Tensor, own: Tensor) -> Side:
        """Each group's numbers for a basis: those nearest to its own best table, or the best of two turns after."""
        patterns = self._patterns(basis)
        theta = (own @ torch.linalg.pinv(patterns.double()).T).to(groups.dtype)
        best, least = None, None
        for _ in range(3):
            theta = as_float16(self, theta)
            codes, tried = costs_of(groups, costs, self._tables(theta, basis))
            if best is None or least is None:
                best, least = theta, tried
            best, least = torch.where((tried < least)[..., None], theta, best), torch.minimum(tried, least)
            theta = best_theta(*given(groups, costs, codes, 2**self.bits), patterns, theta)
        assert best is not None
        return {"basis": basis, "coefficients": best}

    def _better_basis(self, mass: Tensor, total: Tensor, side: Side) -> Tensor:
        """The best directions for codes and groups' numbers as they are: a least-squares problem for each level."""
        numbers, old = side["coefficients"].double().flatten(0, 1), side["basis"].double()
        inner, offset = numbers[:, :-1], numbers[:, -1:]
        mass, total = mass.flatten(0, 1), total.flatten(0, 1)
        normal = torch.einsum("gp,gl,gq->lpq", inner, mass, inner)
        ridge = 1e-7 * normal.diagonal(dim1=1, dim2=2).amax().clamp_min(1e-300)
        normal = normal + ridge * torch.eye(self.rank, dtype=normal.dtype)
        right = torch.einsum("gp,gl->lp", inner, total - mass * offset) + ridge * old.T
        return _normalised(self, torch.linalg.solve(normal / ridge, right / ridge).T).to(side["basis"].dtype)

    def _patterns(self, basis: Tensor) -> Tensor:
        """[L, rank + 1]: the basis and, for the offset, ones."""
        return torch.cat((basis.T, torch.ones_like(basis[:1]).T), 1)

    def _tables(self, numbers: Tensor, basis: Tensor) -> Tensor:
        """[R, G, L], summed in one order whatever the shape, so that they are the same bit for bit."""
        tables = numbers[..., -1:].expand(*numbers.shape[:-1], basis.shape[1])
        for r in range(self.rank):
            tables = tables + numbers[..., r : r + 1] * basis[r]
        return tables


def _normalised(part: object, basis: Tensor) -> Tensor:
    """Directions scaled to a largest entry of 1, as float16; the groups' numbers take up the scale."""
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return as_float16(part, basis / torch.where(largest == 0, 1.0, largest))
