"""Sparse outliers: the few weights that the codes serve worst are kept apart in float16.

The outliers S are chosen once; the codes round W - S, so that outliers no longer stretch the range of a grid; then the
outliers' values follow in closed form from the codes (`sidecars.sparse.best_values`), which lets them make good what
rounding did to their whole row. Where H = I that is W - Q.

Cost: N c^3 / 3 for c outliers a row, and N K^2 multiply-adds.
Papers: EasyQuant (arXiv 2403.02775), SpQR (arXiv 2306.03078), SqueezeLLM (arXiv 2306.07629), GWQ (arXiv 2411.00850),
which differ in the criterion. Differs from all: the values are refitted, where theirs stay W; a fixed number of
outliers, where theirs is a threshold; SpQR decides while it rounds, with weights that carry earlier columns' errors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Field
from lowbit.core.parts import Correction
from lowbit.core.problem import LayerProblem
from lowbit.sidecars.criteria import Criterion
from lowbit.sidecars.half import as_half, no_worse
from lowbit.sidecars.sparse import (
    SparseMatrix,
    best_values,
    largest_entries,
    restored_sparse,
    sparse,
    sparse_fields,
)


@dataclass(frozen=True)
class SparseOutliers:
    """criterion: which weights are kept apart. fraction: how many of them, above 0 to 1."""

    criterion: Criterion
    fraction: float = 0.01

    turns = 1

    def __post_init__(self) -> None:
        require(
            0 < self.fraction <= 1, f"SparseOutliers(fraction={self.fraction}): must be above 0 and up to 1. Use 0.01."
        )

    def count(self, shape: tuple[int, int]) -> int:
        """How many weights of a layer [N, K] are kept apart."""
        return round(self.fraction * shape[0] * shape[1])

    def check(self, shape: tuple[int, int]) -> None:
        self.criterion.check(shape)
        weights = shape[0] * shape[1]
        require(
            self.count(shape) >= 1,
            f"SparseOutliers(fraction={self.fraction}) is less than one weight of a {list(shape)} layer. Use "
            f"{1 / weights:.2g} or more.",
        )

    def start(self, problem: LayerProblem) -> SparseMatrix:
        mask = largest_entries(self.criterion.scores(problem), self.count(problem.shape))
        return sparse(as_half(problem.weight * mask, self), mask)

    def rest(self, problem: LayerProblem, correction: Correction) -> LayerProblem:
        """The codes' weights at the outliers are zero, and what they make of them costs nothing."""
        assert isinstance(correction, SparseMatrix)
        sensitivity = problem.sensitivity
        if sensitivity is not None:
            sensitivity = sensitivity.masked_fill(correction.mask(), 0)
        return replace(problem, weight=problem.weight - correction.dense(), sensitivity=sensitivity)

    def fit(self, problem: LayerProblem, correction: Correction, w_hat: Tensor) -> SparseMatrix:
        assert isinstance(correction, SparseMatrix)
        after = refitted(problem, w_hat, correction.dense(), correction.mask(), self)
        return no_worse(problem, w_hat, correction, after)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return sparse_fields(self.count(shape), shape)

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> SparseMatrix:
        return restored_sparse(tensors, shape)


def refitted(problem: LayerProblem, w_hat: Tensor, before: Tensor, mask: Tensor, part: object) -> SparseMatrix:
    """The entries of the mask [N, K] with their best values beside w_hat [N, K]; before: see `best_values`."""
    return sparse(as_half(best_values(problem, w_hat, before, mask), part), mask)
