"""What a rounding error in each column, or in each weight, costs, relative to the mean.

    none           1 for all
    diagonal       H_jj: what it costs where nothing makes up for it
    conditional    d_j of H = A diag(d) A^T: what is left of that once later columns have absorbed what they can
    fisher         F_ij, the mean square of the loss's gradient by the weight (`LayerProblem.sensitivity`)

The third is what rounding with feedback pays, the second what rounding to nearest pays on average, the last what the
loss itself minds of each weight alone.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import unit_upper_factor
from lowbit.core.problem import LayerProblem

ColumnImportance = Literal["none", "diagonal", "conditional"]
Importance = Literal["none", "diagonal", "conditional", "fisher"]

DAMPING = 0.01
"""Of the factorisation behind "conditional"."""

# The least importance over the mean.
_SMALLEST = 1e-6


class Weighed:
    """What a part says of the costs that it fits by, which its `importance` names."""

    importance: Importance

    @property
    def reads_sensitivity(self) -> bool:
        return self.importance == "fisher"

    def costs(self, problem: LayerProblem) -> Tensor | None:
        """As `costs_for`; None where all errors cost the same."""
        return None if self.importance == "none" else costs_for(self, problem, self.importance)


def check_importance(part: object, importance: Importance, kind: object = Importance) -> None:
    """Raise BadRequest unless it is one of `kind`; `part` names who was given it."""
    allowed = get_args(kind)
    require(
        importance in allowed,
        f"{type(part).__name__}(importance={importance!r}): must be one of {', '.join(allowed)}.",
    )


def costs_for(part: object, problem: LayerProblem, importance: Importance) -> Tensor:
    """What errors cost `part`, in the weight's type: [N, K] for "fisher", else [K]; over the mean, positive."""
    if importance == "fisher":
        return weight_costs(problem.sensitivity_for(part)).to(problem.weight.dtype)
    return column_costs(problem, importance).to(problem.weight.dtype)


def weight_costs(sensitivity: Tensor) -> Tensor:
    """Sensitivities [N, K] over their mean, float64; each at least 1e-6 of its row's mean, all 1e-12."""
    cost = sensitivity.double()
    mean = cost.mean()
    cost = cost / mean if mean > 0 else torch.ones_like(cost)
    return torch.maximum(cost, _SMALLEST * cost.mean(1, keepdim=True)).clamp_min(_SMALLEST**2)


def column_costs(problem: LayerProblem, importance: ColumnImportance) -> Tensor:
    """The cost [K] of an error in each column over the mean, float64, at least 1e-6; ones where all are zero."""
    cost = torch.ones(problem.shape[1], dtype=torch.float64)
    if importance == "diagonal":
        cost = problem.hessian.diagonal().double()
    if importance == "conditional":
        cost = unit_upper_factor(problem.hessian, DAMPING).diagonal
    mean = cost.mean()
    return (cost / mean if mean > 0 else torch.ones_like(cost)).clamp_min(_SMALLEST)
