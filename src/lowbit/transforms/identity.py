"""The layer's own coordinates, and what is common to transforms that leave nothing to store."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.fields import Field
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform


class StoresNothing:
    """What a transform says of its storage where a loaded layer need not know it: any layer fits, nothing is kept."""

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {}

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        return FittedTransform()


@dataclass(frozen=True)
class NoTransform(StoresNothing):
    """W' = W. Stores nothing."""

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform:
        return FittedTransform()
