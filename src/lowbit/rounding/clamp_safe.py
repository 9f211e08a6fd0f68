"""LDLQ with bounded feedback, so that aims stay near the weights and a finite grid is not left.

LDLQ's errors are E = r R with r what rounding each column cost and R = A^-1; a column of R of length l lets a weight
wander by l steps, out of any grid. Here R is the unit upper triangular matrix that costs least among those that wander
no farther than asked, and feedback goes along R^-1:

    minimise tr(R H R^T)    subject to    sum over i < j of R_ij^2 <= excess    for every column j

Without the bound that is A^-1 and LDLQ; with excess 0 it is rounding to nearest. The problem is convex; it is solved by
ADMM from LDLQ's own answer, whose rows share one factorisation of H + rho / 2. The theorem asks for unbiased rounding,
`Stochastic(ClampSafe())`, and a grid with room for the excess (`MidriseGrid(reach=...)`).

Cost: 2 K^3 multiply-adds an iteration, + N K^2 / 2.
Paper: QuIP (arXiv 2307.13304), algorithm 5; rho 0.1 and 100 iterations as in its code. Differs: starts from LDLQ, and
stops there where LDLQ keeps within the bound.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import check_damping, unit_upper_factor
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded
from lowbit.rounding.feedback import round_with_feedback
from lowbit.rounding.rows import row_feedback

# ADMM's penalty, for a Hessian of mean diagonal 1.
_RHO = 0.1


@dataclass(frozen=True)
class ClampSafe:
    """excess: >= 0, what the variance of an error may gain by feedback, in squared steps (the paper's c, there 1).

    damping: as in Ldlq. iterations: >= 1. slab: >= 1 columns a step; changes speed only.
    """

    excess: float = 1.0
    damping: float = 0.01
    iterations: int = 100
    slab: int = 128

    def __post_init__(self) -> None:
        check_damping(self, self.damping)
        require(self.excess >= 0, f"ClampSafe(excess={self.excess}): must be at least 0. Use 1.0.")
        require(self.iterations >= 1, f"ClampSafe(iterations={self.iterations}): must be at least 1. Use 100.")
        require(self.slab >= 1, f"ClampSafe(slab={self.slab}): must be at least 1. Use 128.")

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        factor, rows = unit_upper_factor(problem.hessian, self.damping), row_feedback(problem, code, self.damping)
        spread = inverse(factor.unit_upper)
        if bool((_excess(spread) > self.excess).any()):
            H = problem.hessian.double() / problem.hessian.double().diagonal().mean()
            H.diagonal().add_(factor.damping)
            spread = bounded_spread(H, spread, self.excess, self.iterations)
        rounded = round_with_feedback(problem, code, inverse(spread), self.slab, rows.encode)
        return replace(rounded, outcomes=(*factor.outcomes, *rows.outcomes))


def bounded_spread(H: Tensor, start: Tensor, excess: float, iterations: int) -> Tensor:
    """R [K, K] of least tr(R H R^T) within the bound, near enough; H of mean diagonal about 1, positive definite."""
    penalised = H.clone()
    penalised.diagonal().add_(_RHO / 2)
    factor = unit_upper_factor(penalised, 0.0)
    bounded, multiplier = _within(start.triu(1), excess), torch.zeros_like(H)
    for _ in range(iterations):
        # Row k: r (H + rho / 2) = rho / 2 (bounded - multiplier) - H_k on the columns after k.
        wanted = (_RHO / 2 * (bounded - multiplier) - H).triu(1)
        half = torch.linalg.solve_triangular(factor.unit_upper.T, wanted, upper=False, left=False, unitriangular=True)
        half = half.triu(1) / factor.diagonal
        free = torch.linalg.solve_triangular(factor.unit_upper, half, upper=True, left=False, unitriangular=True)
        bounded = _within(free + multiplier, excess)
        multiplier += free - bounded
    return bounded + torch.eye(len(H), dtype=H.dtype)


def inverse(unit_upper: Tensor) -> Tensor:
    eye = torch.eye(len(unit_upper), dtype=unit_upper.dtype)
    return torch.linalg.solve_triangular(unit_upper, eye, upper=True, unitriangular=True)


def _excess(spread: Tensor) -> Tensor:
    return spread.triu(1).square().sum(0)


def _within(strict: Tensor, excess: float) -> Tensor:
    """Columns longer than sqrt(excess) shortened to it."""
    length = strict.norm(dim=0)
    return strict * torch.where(length.square() > excess, excess**0.5 / length, 1.0)
