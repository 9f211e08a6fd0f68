"""Which weights are outliers: a score for each, of which the largest are kept apart.

Papers name their own: the size of the weight (EasyQuant, arXiv 2403.02775; QuantEase, arXiv 2309.01885), what rounding
it costs (SpQR, arXiv 2306.03078), the gradient (GWQ, arXiv 2411.00850), or first its square and then the size
(SqueezeLLM, arXiv 2306.07629).
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import check_damping, unit_upper_factor
from lowbit.core.parts import Code, Shaped, code_at
from lowbit.core.problem import LayerProblem
from lowbit.sidecars.sparse import largest_entries


@runtime_checkable
class Criterion(Protocol):
    def check(self, shape: tuple[int, int]) -> None:
        """Raise BadRequest where it cannot judge a layer [N, K]."""
        ...

    def scores(self, problem: LayerProblem) -> Tensor:
        """What leaving a weight to the codes would cost, [N, K], not negative, not NaN; only their order matters."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """How far a weight is from the layer's mean."""

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def scores(self, problem: LayerProblem) -> Tensor:
        return (problem.weight - problem.weight.mean()).abs()


@dataclass(frozen=True)
class Sensitivity:
    """The mean square of the loss's gradient by the weight, whatever its size and its rounding."""

    @property
    def reads_sensitivity(self) -> bool:
        return True

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def scores(self, problem: LayerProblem) -> Tensor:
        return problem.sensitivity_for(self)


@dataclass(frozen=True)
class TwoCriteria:
    """The largest by `first`, `fraction` of the layer's weights, and after them all others by `second`.

    fraction: above 0 and below 1; where a side-car takes no more, `second` decides nothing.
    """

    first: "Criterion"
    fraction: float
    second: "Criterion"

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, f"TwoCriteria(fraction={self.fraction}): must be above 0 and below 1.")

    def check(self, shape: tuple[int, int]) -> None:
        self.first.check(shape)
        self.second.check(shape)

    def scores(self, problem: LayerProblem) -> Tensor:
        chosen = largest_entries(self.first.scores(problem), round(self.fraction * problem.weight.numel()))
        return self.second.scores(problem).masked_fill(chosen, torch.inf)


@dataclass(frozen=True)
class RoundingCost:
    """c_j (W_ij - Q_ij)^2, Q rounded to nearest; for the largest and the smallest weight that share a grid, what their
    whole group gains when they do not stretch its range, if that is more.

    code: the one that weights are kept out of. group_size: columns of a row that share a grid, or "row".
    column: an error in column j costs c_j = d_j of H = A diag(d) A^T, when later columns have absorbed what they can
    ("feedback", SpQR's 1 / U_jj^2), or c_j = H_jj ("diagonal").
    damping: as in Ldlq.
    """

    code: Code | Shaped
    group_size: int | Literal["row"] = "row"
    column: Literal["feedback", "diagonal"] = "feedback"
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_damping(self, self.damping)
        require(
            self.group_size == "row" or self.group_size >= 1,
            f'RoundingCost(group_size={self.group_size!r}): must be a positive number of columns, or "row".',
        )
        require(
            self.column in ("feedback", "diagonal"),
            f'RoundingCost(column={self.column!r}): must be "feedback" or "diagonal".',
        )

    def check(self, shape: tuple[int, int]) -> None:
        code_at(self.code, shape).check(shape)
        require(
            shape[1] % self._group(shape) == 0,
            f"RoundingCost(group_size={self.group_size}) does not divide the inputs of a {list(shape)} layer. Use the "
            "code's own group size.",
        )

    def scores(self, problem: LayerProblem) -> Tensor:
        (n, k), costs, group = problem.shape, self._costs(problem), self._group(problem.shape)
        own = costs * nearest_error(self.code, problem).square()
        scores, groups = own.clone().view(n, -1, group), problem.weight.view(n, -1, group)
        for extreme in (groups.argmax(-1, keepdim=True), groups.argmin(-1, keepdim=True)):
            without = groups.scatter(-1, extreme, 0).view(n, k)
            rest = costs * nearest_error(self.code, replace(problem, weight=without)).square()
            gain = own.view_as(groups).sum(-1, keepdim=True) - _sum_without(rest.view_as(groups), extreme)
            scores.scatter_(-1, extreme, torch.maximum(scores.gather(-1, extreme), gain))
        return scores.view(n, k)

    def _group(self, shape: tuple[int, int]) -> int:
        return shape[1] if self.group_size == "row" else self.group_size

    def _costs(self, problem: LayerProblem) -> Tensor:
        if self.column == "diagonal":
            return problem.hessian.double().diagonal()
        return unit_upper_factor(problem.hessian, self.damping).diagonal


def _sum_without(costs: Tensor, left_out: Tensor) -> Tensor:
    """Sums over the last axis without the entry at `left_out` [..., 1]."""
    return costs.sum(-1, keepdim=True) - costs.gather(-1, left_out)


def nearest_error(code: Code | Shaped, problem: LayerProblem) -> Tensor:
    """Q - W, [N, K], float64, for Q rounded to nearest."""
    code, every = code_at(code, problem.shape), torch.arange(problem.shape[1])
    values = code.encode(problem.weight, code.fit(problem), every)[1]
    return (values - problem.weight).double()
