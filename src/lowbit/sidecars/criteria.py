"""Which weights are outliers: a score for each, of which the largest are kept apart.

Papers name their own: the size of the weight (EasyQuant, arXiv 2403.02775; QuantEase, arXiv 2309.01885), or what
rounding it costs (SpQR, arXiv 2306.03078).
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import check_damping, unit_upper_factor
from lowbit.core.parts import Code, Shaped
from lowbit.core.problem import LayerProblem


@runtime_checkable
class Criterion(Protocol):
    def scores(self, problem: LayerProblem) -> Tensor:
        """What leaving a weight to the codes would cost, [N, K], not negative, not NaN; only their order matters."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """How far a weight is from the layer's mean."""

    def scores(self, problem: LayerProblem) -> Tensor:
        return (problem.weight - problem.weight.mean()).abs()


@dataclass(frozen=True)
class RoundingCost:
    """c_j (W_ij - Q_ij)^2, Q rounded to nearest.

    code: the one that weights are kept out of. column: an error in column j costs c_j = d_j of H = A diag(d) A^T, when
    later columns have absorbed what they can ("feedback", SpQR's 1 / U_jj^2), or c_j = H_jj ("diagonal").
    damping: as in Ldlq.
    """

    code: Code | Shaped
    column: Literal["feedback", "diagonal"] = "feedback"
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_damping(self, self.damping)
        require(
            self.column in ("feedback", "diagonal"),
            f'RoundingCost(column={self.column!r}): must be "feedback" or "diagonal".',
        )

    def scores(self, problem: LayerProblem) -> Tensor:
        return self._costs(problem) * nearest_error(self.code, problem).square()

    def _costs(self, problem: LayerProblem) -> Tensor:
        if self.column == "diagonal":
            return problem.hessian.double().diagonal()
        return unit_upper_factor(problem.hessian, self.damping).diagonal


def nearest_error(code: Code | Shaped, problem: LayerProblem) -> Tensor:
    """Q - W, [N, K], float64, for Q rounded to nearest."""
    fitted = code.at(problem.shape) if isinstance(code, Shaped) else code
    every = torch.arange(problem.shape[1])
    values = fitted.encode(problem.weight, fitted.fit(problem), every)[1]
    return (values - problem.weight).double()
