"""Orders: round the columns with the largest diag(H) first, while most columns are left to absorb their error.

OPTQ's act-order (arXiv 2210.17323, repository option `--act-order`) comes in two forms that differ in where side
information is fitted. Fitted after permuting (`ActOrder`), groups hold columns of similar weight and the
permutation must be stored. Fitted before (`StaticOrder`, the repository's `--static-groups`), the columns keep
their places and nothing is stored; without groups both give the same codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Bits, Field
from lowbit.core.maps import Permutation
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform


def by_diagonal(problem: LayerProblem) -> Permutation:
    """Columns by decreasing diag(H); ties in their own order."""
    return Permutation(torch.argsort(problem.hessian.diagonal(), descending=True, stable=True))


@dataclass(frozen=True)
class ActOrder:
    """Permute the columns by decreasing diag(H). Stores ceil(log2 K) bits per column."""

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform:
        return FittedTransform(right=by_diagonal(problem))

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {"order": Bits((shape[1],), max(1, (shape[1] - 1).bit_length()))}

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        assert isinstance(fitted.right, Permutation)
        return {"order": fitted.right.index}

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        index = tensors["order"].long()
        require(
            torch.equal(index.sort().values, torch.arange(shape[1])),
            f"ActOrder: the stored order does not name each of the {shape[1]} columns once. The file is damaged.",
        )
        return FittedTransform(right=Permutation(index))


@dataclass(frozen=True)
class StaticOrder:
    """Visit the columns by decreasing diag(H), with side information fitted in their own order. Stores nothing."""

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform:
        return FittedTransform(order=by_diagonal(problem))

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {}

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        return FittedTransform()
