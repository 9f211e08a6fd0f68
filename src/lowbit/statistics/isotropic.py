"""No statistic: every input direction counts the same, H = I, and no calibration data is read.

The problem of methods that look at weights alone, such as rounding to nearest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.parts import Reads
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome


@dataclass(frozen=True)
class Isotropic:
    """H = I. The state is the number of tokens seen, which is never asked for."""

    @property
    def reads(self) -> Reads:
        return "nothing"

    def init(self, k: int) -> int:
        return 0

    def update(self, state: int, x: Tensor, x_float: Tensor | None) -> int:
        return state + len(x)

    def merge(self, a: int, b: int) -> int:
        return a + b

    def problem(self, state: int, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        return LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64)), ()

    def tokens(self, state: int) -> int:
        return state
