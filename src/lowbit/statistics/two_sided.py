"""What the loss minds: any statistic of the inputs beside one of the gradients g of the loss by the layer's outputs.

If inputs and gradients were independent, the empirical Fisher information of W would be a Kronecker product, and a
change D of W would cost

    tr( G D H D^T ),    H = mean of x x^T,  G = mean of g g^T

`GradientCovariance` is that G. `GradientEnergy` keeps its diagonal: outputs that the loss does not mind count less
where rows compete, as for one scale for the whole layer, and nothing changes where each row is rounded for itself.
The gradients are those of the original model, from one backward pass (`pipeline.gradients`).

Only rounders for problems with a row Hessian make use of a full G.

Cost: that of the columns' statistic, a backward pass, T N^2 multiply-adds for G, T N for its diagonal; an expert's or
a layer's G is 8 N^2 bytes, all of them in memory at once.
Papers: K-FAC (arXiv 1503.05671) for the product; YAQA (arXiv 2505.22988) and GuidedQuant (arXiv 2505.07004) round with
such Hessians. Differs: labels are those of the text, and the two factors are plain means, not a nearest product.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lowbit.core.parts import Observable, Observed, Statistic
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome
from lowbit.statistics.second_moment import SecondMoment


@runtime_checkable
class RowMoment(Protocol):
    """Which part of G is kept."""

    def total(self, g: Tensor) -> Tensor:
        """The part of g^T g for gradients [t, N], float64."""
        ...

    def matrix(self, total: Tensor) -> Tensor:
        """G [N, N] of that part."""
        ...


@dataclass(frozen=True)
class GradientCovariance:
    """All of G. Takes a rounder for two-sided problems."""

    def total(self, g: Tensor) -> Tensor:
        return (g.T @ g).double()

    def matrix(self, total: Tensor) -> Tensor:
        return (total + total.T) / 2


@dataclass(frozen=True)
class GradientEnergy:
    """The diagonal of G: mean of g^2 for each output."""

    def total(self, g: Tensor) -> Tensor:
        return g.double().square().sum(0)

    def matrix(self, total: Tensor) -> Tensor:
        return total.diag()


@dataclass(eq=False)
class TwoMoments:
    """columns: state of the inputs' statistic; rows: sum over `tokens` gradients, or None before the first."""

    columns: Any
    rows: Tensor | None
    tokens: int


@dataclass(frozen=True)
class TwoSided:
    """columns: makes H (and, where it does, another target); rows: makes G."""

    columns: Statistic = field(default_factory=SecondMoment)
    rows: RowMoment = field(default_factory=GradientEnergy)

    @property
    def reads(self) -> frozenset[Observable]:
        return self.columns.reads | {"output_gradients"}

    def init(self, k: int) -> TwoMoments:
        return TwoMoments(self.columns.init(k), None, 0)

    def update(self, state: TwoMoments, seen: Observed) -> TwoMoments:
        if "output_gradients" in seen:
            g = seen["output_gradients"]
            return TwoMoments(state.columns, summed(state.rows, self.rows.total(g)), state.tokens + len(g))
        return TwoMoments(self.columns.update(state.columns, seen), state.rows, state.tokens)

    def merge(self, a: TwoMoments, b: TwoMoments) -> TwoMoments:
        return TwoMoments(self.columns.merge(a.columns, b.columns), summed(a.rows, b.rows), a.tokens + b.tokens)

    def problem(self, state: TwoMoments, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        problem, outcomes = self.columns.problem(state.columns, weight)
        if state.rows is None or not bool(state.rows.any()):
            return problem, (*outcomes, no_gradients("outputs", "every output counts the same"))
        rows = self.rows.matrix(state.rows / state.tokens)
        return replace(problem, row_hessian=rows), outcomes

    def tokens(self, state: TwoMoments) -> int:
        return self.columns.tokens(state.columns)


def summed(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, None standing for nothing yet."""
    return b if a is None else a if b is None else a + b


def no_gradients(of: str, so: str) -> Outcome:
    """Of what the loss does not depend on, and what follows."""
    return Outcome(
        "no gradients",
        f"The loss does not depend on this layer's {of} in calibration: {so}.",
        "Calibrate on more, or more varied, text.",
    )
