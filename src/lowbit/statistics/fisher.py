"""The sensitivity of single weights: any statistic of the inputs, and beside it the diagonal of the Fisher information.

    F_ij = mean over windows of (dL/dW_ij)^2,    L the summed loss of a window's next tokens

To second order a change D of W costs about 1/2 sum_ij F_ij D_ij^2 of the loss itself, weight by weight, where
tr(D H D^T) is the error of the layer's outputs. The two are known together: H for rounders and the reported loss, F as
`LayerProblem.sensitivity` for the parts that ask for it, such as `ClusteredLevels(importance="fisher")` or the
criterion `Sensitivity`. The order of F within a layer is that of the root mean square gradient, so with one window it
is that of the gradient's magnitude (GWQ).

Gradients are those of the original model, one window at a time: squares of a sum over windows would be far smaller.
They are float32, and so is the sum of their squares. Weights of a layer that no gradient reaches all count the same,
and an outcome says so.

Cost: that of the inputs' statistic, a backward pass, and N K T multiply-adds a window; 4 N K bytes for each layer, all
of them in memory at once.
Papers: SqueezeLLM (arXiv 2306.07629), GWQ (arXiv 2411.00850), which takes the gradient's magnitude in one window.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.parts import Observable, Observed, Statistic
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome
from lowbit.statistics.second_moment import SecondMoment
from lowbit.statistics.two_sided import no_gradients, summed

_UNKNOWN = no_gradients("weights", "every weight is as sensitive as any other")


@dataclass(eq=False)
class Squares:
    """columns: state of the inputs' statistic; total: [N, K], sum over `windows` squares, or None before the first."""

    columns: Any
    total: Tensor | None
    windows: int


@dataclass(frozen=True)
class FisherDiagonal:
    """columns: makes everything of the problem but the sensitivity; reads a layer's inputs."""

    columns: Statistic = field(default_factory=SecondMoment)

    def __post_init__(self) -> None:
        require(
            bool(self.columns.reads),
            f"FisherDiagonal({type(self.columns).__name__}): must look at a layer's inputs. Use SecondMoment().",
        )

    @property
    def reads(self) -> frozenset[Observable]:
        return self.columns.reads | {"weight_gradients"}

    def init(self, k: int) -> Squares:
        return Squares(self.columns.init(k), None, 0)

    def update(self, state: Squares, seen: Observed) -> Squares:
        if "weight_gradients" in seen:
            g = seen["weight_gradients"]
            return Squares(state.columns, summed(state.total, g.square().sum(0)), state.windows + len(g))
        return Squares(self.columns.update(state.columns, seen), state.total, state.windows)

    def merge(self, a: Squares, b: Squares) -> Squares:
        return Squares(self.columns.merge(a.columns, b.columns), summed(a.total, b.total), a.windows + b.windows)

    def problem(self, state: Squares, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        problem, outcomes = self.columns.problem(state.columns, weight)
        if state.total is None or not bool(state.total.any()):
            return replace(problem, sensitivity=torch.ones_like(weight)), (*outcomes, _UNKNOWN)
        return replace(problem, sensitivity=state.total / state.windows), outcomes

    def tokens(self, state: Squares) -> int:
        return self.columns.tokens(state.columns)
