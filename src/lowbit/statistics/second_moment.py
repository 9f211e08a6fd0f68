"""The second moment of a layer's inputs: H = mean of x x^T over calibration tokens.

tr((W_hat - W) H (W_hat - W)^T) is then the mean squared error of the layer's outputs on the inputs the quantized
prefix produces. OPTQ (arXiv 2210.17323) and everything after it start here; its code keeps 2 H, we keep H.

Products of a chunk of tokens are taken in the inputs' own float32, sums over chunks in float64: the error of a
chunk's product is a few ulp of float32 relative to H, and nothing is lost over millions of tokens. Because chunks
are summed in float64, merging two states equals one pass over both up to 1e-15. Cost: T K^2 multiply-adds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.linalg import no_signal
from lowbit.core.parts import Observable, Observed
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome


@dataclass(eq=False)
class Moments:
    """total: [K, K] float64, the sum of x x^T; tokens: how many x."""

    total: Tensor
    tokens: int


@dataclass(frozen=True)
class SecondMoment:
    """H = mean x x^T."""

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"inputs"})

    def init(self, k: int) -> Moments:
        return Moments(torch.zeros(k, k, dtype=torch.float64), 0)

    def update(self, state: Moments, seen: Observed) -> Moments:
        x = seen["inputs"]
        state.total += x.T @ x
        return Moments(state.total, state.tokens + len(x))

    def merge(self, a: Moments, b: Moments) -> Moments:
        return Moments(a.total + b.total, a.tokens + b.tokens)

    def problem(self, state: Moments, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        return LayerProblem(weight, mean(state)), () if state.tokens else (no_signal(),)

    def tokens(self, state: Moments) -> int:
        return state.tokens


def mean(state: Moments) -> Tensor:
    """The mean of what was summed, [K, K], symmetric; zero where there was nothing."""
    average = state.total / max(1, state.tokens)
    return (average + average.T) / 2
