"""GPFQ: follow the path of the layer's outputs greedily, one column after the other.

    column j aims at  W_j + sum over i < j of (W_i - W_hat_i) H_ij / H_jj

which is the best it can do for the error of the columns up to j, were there no others. LDLQ asks instead what is best
given that all later columns will adapt; so GPFQ loses to it, but needs no factor and no damping, and takes a singular
H as it comes. A tile of columns aims at the same with H_jj a matrix.

Cost: N K^2 / 2 multiply-adds. With a row Hessian, rows get LDLQ's feedback (`lowbit.rounding.rows`).
Papers: Lybrand and Saab, A greedy algorithm for quantizing neural networks (arXiv 2010.15979); as GPFQ in arXiv
2201.11113. Differs: works from H alone; inputs that the quantized prefix changed enter by the statistic, so a column's
aim knows what all of them changed and not those before it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import check_damping, checked_second_moment
from lowbit.core.parts import Code, joint_columns
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded
from lowbit.rounding.feedback import round_with_feedback, spans
from lowbit.rounding.rows import row_feedback


@dataclass(frozen=True)
class Gpfq:
    """row_damping: of a row Hessian, as in Ldlq. slab: >= 1 columns a step; changes speed only."""

    row_damping: float = 0.01
    slab: int = 128

    def __post_init__(self) -> None:
        check_damping(self, self.row_damping)
        require(self.slab >= 1, f"Gpfq(slab={self.slab}): must be at least 1. Use 128.")

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        outcomes = checked_second_moment(problem.hessian)
        rows = row_feedback(problem, code, self.row_damping)
        feedback = path_feedback(problem.hessian.double(), joint_columns(code))
        rounded = round_with_feedback(problem, code, feedback, self.slab, rows.encode)
        return replace(rounded, outcomes=(*outcomes, *rows.outcomes))


def path_feedback(H: Tensor, width: int) -> Tensor:
    """H_ij H_jj^-1 above the diagonal tiles of `width` columns, which are identities: [K, K]."""
    feedback = torch.eye(len(H), dtype=H.dtype)
    for tile in spans(0, len(H), width):
        inverse = torch.linalg.pinv(H[tile, tile], hermitian=True)
        feedback[: tile.start, tile] = H[: tile.start, tile] @ inverse
    return feedback
