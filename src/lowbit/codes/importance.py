"""What a rounding error in each column costs, relative to the mean.

    none           1 for all
    diagonal       H_jj: what it costs where nothing makes up for it
    conditional    d_j of H = A diag(d) A^T: what is left of that once later columns have absorbed what they can

The last is what rounding with feedback pays, the second what rounding to nearest pays on average.
"""

from typing import Literal

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import unit_upper_factor
from lowbit.core.problem import LayerProblem

Importance = Literal["none", "diagonal", "conditional"]

DAMPING = 0.01
"""Of the factorisation behind "conditional"."""

# The least importance over the mean.
_SMALLEST = 1e-6


def check_importance(part: object, importance: Importance) -> None:
    """Raise BadRequest unless it is one of those above; `part` names who was given it."""
    allowed = ("none", "diagonal", "conditional")
    require(
        importance in allowed,
        f"{type(part).__name__}(importance={importance!r}): must be one of {', '.join(allowed)}.",
    )


def column_costs(problem: LayerProblem, importance: Importance) -> Tensor:
    """The cost [K] of an error in each column over the mean, float64, at least 1e-6; ones where all are zero."""
    cost = torch.ones(problem.shape[1], dtype=torch.float64)
    if importance == "diagonal":
        cost = problem.hessian.diagonal().double()
    if importance == "conditional":
        cost = unit_upper_factor(problem.hessian, DAMPING).diagonal
    mean = cost.mean()
    return (cost / mean if mean > 0 else torch.ones_like(cost)).clamp_min(_SMALLEST)
