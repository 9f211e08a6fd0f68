"""No statistic: every input direction counts the same, H = I, and no calibration data is read.

The problem of methods that look at weights alone, such as rounding to nearest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.parts import Observable, Observed
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome


@dataclass(frozen=True)
class Isotropic:
    """H = I. There is nothing to see, so the state is the zero tokens it has seen."""

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset()

    def init(self, k: int) -> int:
        return 0

    def update(self, state: int, seen: Observed) -> int:
        return state

    def merge(self, a: int, b: int) -> int:
        return a + b

    def problem(self, state: int, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        return LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64)), ()

    def tokens(self, state: int) -> int:
        return state
