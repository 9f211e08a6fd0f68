"""LDLQ: round each tile of columns at the target that cancels what the columns before it left behind.

With H + damping = A diag(d) A^T, A unit upper triangular, the loss is sum_j d_j |(E A)_j|^2 for E = W_hat - W, so
column j should aim at

    W_j + sum over i < j of (W_i - W_hat_i) A_ij

which `lowbit.rounding.feedback` does, for tiles too (QuIP#, arXiv 2402.04396, block LDLQ). With a row Hessian
G = B diag(g) B^T the loss is sum_ij g_i d_j (B^T E A)_ij^2, and a row's aim also cancels what the rows before it left
behind: `lowbit.rounding.rows`. OPTQ, with its factor of the inverse, is this algorithm (QuIP, theorem 6), and so is
Babai's nearest plane.

Cost: K^3 / 3 (factor) + N K^2 / 2 multiply-adds; memory 8 (N K + K^2) bytes. A row Hessian adds N^3 / 3 + N^2 K / 2.
Papers: QuIP (arXiv 2307.13304), sections 3.1 and 3.2; OPTQ (arXiv 2210.17323), lazy batches; BoA (arXiv 2406.13474) for
the rows. Differs from OPTQ's repository: one factorisation in float64 instead of three in float32, order is a
transform, dead inputs keep weights.
"""

from dataclasses import dataclass, replace

from lowbit.core.errors import require
from lowbit.core.linalg import check_damping, unit_upper_factor
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded
from lowbit.rounding.bounds import feedback_guarantee
from lowbit.rounding.feedback import round_with_feedback
from lowbit.rounding.rows import row_feedback


@dataclass(frozen=True)
class Ldlq:
    """damping: 0 to 1000, a fraction of the mean diagonal of H (and of G). slab: >= 1 columns a step; speed only."""

    damping: float = 0.01
    slab: int = 128

    def __post_init__(self) -> None:
        check_damping(self, self.damping)
        require(self.slab >= 1, f"Ldlq(slab={self.slab}): must be at least 1. Use 128.")

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        factor, rows = unit_upper_factor(problem.hessian, self.damping), row_feedback(problem, code, self.damping)
        rounded = round_with_feedback(problem, code, factor.unit_upper, self.slab, rows.encode)
        guarantee = feedback_guarantee(problem, rounded, code, factor, rows.factor)
        return replace(rounded, outcomes=(*factor.outcomes, *rows.outcomes), guarantee=guarantee)
