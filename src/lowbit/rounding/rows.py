"""Feedback between rows, for problems with a row Hessian G.

    loss = tr(G E H E^T) = sum_ij g_i d_j (B^T E A)_ij^2,    G = B diag(g) B^T,  H = A diag(d) A^T,  E = W_hat - W

With R = (W - W_hat) A, what a row leaves behind, row i aims at its own target plus sum over k < i of B_ki R_k. This is
LDLQ (and OPTQ) on the Kronecker problem G x H with its N K weights in row-major order, entry by entry.

Rows that G does not couple are independent: where it is block diagonal (one block a head of attention), the i-th rows
of all blocks make a *wave* and are rounded together. A diagonal G changes nothing and costs nothing. Tiles of several
rows are rounded as one, at aims that cancel the tiles before them.

Codes of single weights round just the rows of a wave, by their levels; others encode the slab once for every wave.
Cost beside the columns': N^3 / 3 + N^2 K / 2 multiply-adds, or with other codes one encoding of the layer a wave.
Paper: BoA (arXiv 2406.13474). Differs from its code: any G, and any code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowbit.core.levels import Levels, has_levels, levels
from lowbit.core.linalg import Factor, unit_upper_factor
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome, Side
from lowbit.kernels.beam import beam_slab
from lowbit.rounding.feedback import Encode, unit_tiles


@dataclass(frozen=True, eq=False)
class RowFeedback:
    """encode: `Code.encode_with_feedback`, with feedback between rows where there is any, by `factor` of G."""

    encode: Encode
    outcomes: tuple[Outcome, ...] = ()
    factor: Factor | None = None


def row_feedback(problem: LayerProblem, code: Code, damping: float) -> RowFeedback:
    """Feedback by the row Hessian of `problem`, damped by `damping` of its mean diagonal; none without one."""
    G = problem.row_hessian
    if G is None or is_diagonal(G):
        return RowFeedback(code.encode_with_feedback)
    height = tile_height(code, len(G))
    factor = unit_upper_factor(G, damping)
    strict = unit_tiles(factor.unit_upper, height, slice(0, len(factor.unit_upper))).to(problem.weight.dtype, copy=True)
    for tile in range(0, len(G), height):
        strict[tile : tile + height, tile : tile + height] = 0
    outcomes = () if factor.damping == damping else (_row_damping_raised(damping, factor.damping),)
    if not bool(strict.any()):
        return RowFeedback(code.encode_with_feedback, (*outcomes, _COVERED))
    return RowFeedback(_Rows(code, problem.shape, strict, tuple(waves(G, height)), height), outcomes, factor)


def rows_apart(rounder: object, problem: LayerProblem) -> tuple[Outcome, ...]:
    """An outcome where `rounder`, which rounds each row on its own, leaves out a row Hessian that couples them."""
    G = problem.row_hessian
    if G is None or is_diagonal(G):
        return ()
    name = type(rounder).__name__
    return (
        Outcome(
            "row hessian unused",
            f"{name} rounds each output on its own and left out what outputs cost each other.",
            f"Use Ldlq, CoordinateDescent({name}(...)), or a statistic without a row Hessian.",
        ),
    )


def tile_height(code: Code, rows: int) -> int:
    """Rows that are encoded together: all of them where tiles do not divide them, for codes may then level tiles."""
    return code.tile[0] if rows % code.tile[0] == 0 else rows


@dataclass(frozen=True, eq=False)
class Wave:
    """Tiles of rows that may change together, each as if the others stood still.

    rows: [R] int64, whole tiles of `height`. weights: G[rows] [R, N], or None where rows are not coupled.
    """

    rows: Tensor
    height: int
    weights: Tensor | None

    @property
    def tiles(self) -> Tensor:
        """The numbers of its tiles."""
        return self.rows[:: self.height] // self.height

    @cached_property
    def own(self) -> Tensor:
        """G within each tile, [R / height, height, height]."""
        assert self.weights is not None
        tiles, rows = len(self.tiles), self.weights[:, self.rows]
        return rows.view(tiles, self.height, tiles, self.height).diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def pull(self, error: Tensor) -> Tensor:
        """What the error [N, K] of all rows pulls on these, [R, K]."""
        return error[self.rows] if self.weights is None else self.weights @ error

    def weighed(self, step: Tensor) -> Tensor:
        """G within tiles, times step [R, w]."""
        return step if self.weights is None else (self.own @ self._tiled(step)).flatten(0, 1)

    def unweighed(self, pull: Tensor) -> Tensor:
        """Its pseudo-inverse times pull [R, w]."""
        return pull if self.weights is None else (self.inverse @ self._tiled(pull)).flatten(0, 1)

    @cached_property
    def inverse(self) -> Tensor:
        return torch.linalg.pinv(self.own, hermitian=True)

    def _tiled(self, x: Tensor) -> Tensor:
        return x.reshape(len(self.tiles), self.height, -1)

    def by_tile(self, x: Tensor) -> Tensor:
        """Sums of x [R] over the rows of each tile."""
        return x.view(-1, self.height).sum(1)


def coupled_waves(problem: LayerProblem, code: Code) -> list[Wave]:
    """The waves of a problem; all rows are one where there is no row Hessian, or a diagonal one."""
    (n, _), G = problem.shape, problem.row_hessian
    height = tile_height(code, n)
    if G is None or is_diagonal(G):
        return [Wave(torch.arange(n), height, None)]
    G = G.to(problem.weight.dtype)
    return [Wave(rows, height, G[rows]) for rows in waves(G, height)]


def is_diagonal(matrix: Tensor) -> bool:
    return not bool((matrix - matrix.diagonal().diag()).any())


def waves(G: Tensor, height: int) -> Iterator[Tensor]:
    """Rows to round together, each [rows] ascending: the i-th tile of `height` rows of every coupled set of tiles."""
    tiles = len(G) // height
    coupled = (G.reshape(tiles, height, tiles, height) != 0).any(3).any(1)
    sets, before = torch.arange(tiles), torch.full((tiles,), -1)
    while not torch.equal(sets, before):
        before = sets
        nearby = torch.where(coupled, sets, tiles).amin(1)
        sets = torch.minimum(sets, nearby)
        sets = sets[sets]
    members = sets == torch.unique(sets)[:, None]
    rank = ((members.cumsum(1) - 1) * members).sum(0)
    for wave in range(int(rank.max()) + 1):
        chosen = torch.nonzero(rank == wave)
        yield (chosen * height + torch.arange(height)).flatten()


@dataclass(frozen=True, eq=False)
class _Rows:
    """Called as `Code.encode_with_feedback`. strict: [N, N], B without its diagonal tiles."""

    code: Code
    shape: tuple[int, int]
    strict: Tensor
    waves: tuple[Tensor, ...]
    height: int

    def __call__(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        known = levels(self.code, side, columns, self.shape) if has_levels(self.code, self.shape) else None
        behind, values, codes = torch.zeros_like(target), torch.empty_like(target), []
        for rows in self.waves:
            aim = target.clone()
            aim[rows] += self.strict[:, rows].T @ behind
            if known is None:
                encoded, decoded = self.code.encode_with_feedback(weight, aim, feedback, side, columns)
                encoded, decoded = encoded[torch.unique(rows // self.height)], decoded[rows]
            else:
                encoded, decoded = nearest_levels(weight[rows], aim[rows], feedback, known, rows)
            values[rows] = decoded
            behind[rows] = target[rows] - weight[rows] + (weight[rows] - decoded) @ feedback
            codes.append(encoded)
        tiles = torch.cat([rows[:: self.height] for rows in self.waves]) // self.height
        return torch.cat(codes)[torch.argsort(tiles)], values


def nearest_levels(
    weight: Tensor, target: Tensor, feedback: Tensor, known: Levels, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes and values [R, w] of some rows of a slab, by nearest level with feedback between columns."""
    cost, score = torch.zeros(len(feedback), dtype=torch.float64), torch.zeros(len(rows), 1, dtype=torch.float64)
    index, *_ = beam_slab(weight, target[:, None], feedback, cost, known.values[rows], score, 1)
    index = index.view(len(rows), -1, 1).long()
    return known.codes[rows].gather(2, index)[:, :, 0], known.values[rows].gather(2, index)[:, :, 0]


_COVERED = Outcome(
    "row hessian unused",
    "The code's tiles cover all coupled outputs, which leaves no feedback between them.",
    "Use a code with lower tiles, or a statistic without a row Hessian.",
)


def _row_damping_raised(asked: float, used: float) -> Outcome:
    return Outcome(
        "row damping raised",
        f"The row Hessian was not positive definite with damping {asked:g}; {used:g} was used.",
        "Use more calibration tokens, or ask for this damping.",
    )
