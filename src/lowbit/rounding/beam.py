"""Beam search: keep several choices of each row's first columns, not just the one that looks best so far.

With H + damping = A diag(d) A^T the loss of a row is sum_j d_j |(E A)_j|^2, and each term needs only the columns up to
its own. So LDLQ, which takes the level nearest to its aim, is the first descent into a tree; here `width` survivors go
down side by side, each with its own errors fed back, every one tries the few levels nearest to its own aim, and the
best `width` of all, by the sum so far, go on. Width 1 is LDLQ; a width that no choice exceeds finds the optimum.

Codes that fit scales to groups of columns on the way have one scale a group and row: there only the best survivor
enters a new group. Static scales let all of them on.

Cost: `width` times LDLQ's multiply-adds, as much again for moving survivors; memory 5 N K width bytes, in chunks of
rows. Papers: the list form of successive cancellation; best-first sphere decoding (Schnorr and Euchner, 1994), M
algorithm (Anderson and Mohan, 1984).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.levels import levels, require_levels
from lowbit.core.linalg import check_damping, unit_upper_factor
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded, Side
from lowbit.kernels.beam import beam_slab
from lowbit.rounding.feedback import round_with_feedback, spans
from lowbit.rounding.rows import rows_apart

# Weights times survivors that are searched at a time.
_CHUNK = 1 << 25


@dataclass(frozen=True)
class Beam:
    """width: >= 1 survivors a row. candidates: >= 1 values that each survivor tries for a column.

    damping: as in Ldlq. slab: >= 1 columns a step; changes speed only.
    """

    width: int = 16
    candidates: int = 3
    damping: float = 0.01
    slab: int = 128

    def __post_init__(self) -> None:
        check_damping(self, self.damping)
        for name, value, usual in (("width", self.width, 16), ("candidates", self.candidates, 3)):
            require(value >= 1, f"Beam({name}={value}): must be at least 1. Use {usual}.")
        require(self.slab >= 1, f"Beam(slab={self.slab}): must be at least 1. Use 128.")

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        require_levels(self, code, problem.shape, "Use Ldlq, or CoordinateDescent(Ldlq()), which betters it.")
        factor = unit_upper_factor(problem.hessian, self.damping)
        search = _Search(self, code, problem.shape, factor.diagonal)
        rounded = round_with_feedback(problem, code, factor.unit_upper, problem.shape[1], search)
        return replace(rounded, outcomes=(*factor.outcomes, *rows_apart(self, problem)))


@dataclass(frozen=True, eq=False)
class _Search:
    """Called as `Code.encode_with_feedback`, with all columns of a group at once. cost: d [K]."""

    beam: Beam
    code: Code
    shape: tuple[int, int]
    cost: Tensor

    def __call__(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        (n, w), width = target.shape, self.beam.width
        codes = torch.empty(n, w, dtype=torch.uint8)
        for rows in spans(0, n, max(1, _CHUNK // (w * width))):
            score = torch.full((len(target[rows]), width), torch.inf, dtype=torch.float64)
            score[:, 0] = 0
            error = target.new_zeros(len(score), width, w)
            q = torch.zeros(error.shape, dtype=torch.uint8)
            for slab in spans(0, w, self.beam.slab):
                known, before = levels(self.code, side, columns[slab], self.shape), slice(0, slab.start)
                aim = target[rows, None, slab] + error[:, :, before] @ feedback[before, slab]
                tree = (weight[rows, slab], aim, feedback[slab, slab], self.cost[columns[slab]], known.values[rows])
                index, error[:, :, slab], parent, score = beam_slab(*tree, score, self.beam.candidates)
                q[:, :, slab] = known.codes[rows].gather(2, index.long().transpose(1, 2)).transpose(1, 2)
                for history in (error[:, :, before], q[:, :, before]):
                    history.copy_(history.gather(1, parent[:, :, None].expand_as(history)))
            codes[rows] = q[:, 0]
        return codes, self.code.decode(codes, side, columns)
