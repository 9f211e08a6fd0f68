"""The second moment of a layer's inputs: H = mean of x x^T over calibration tokens.

tr((W_hat - W) H (W_hat - W)^T) is then the mean squared error of the layer's outputs on the inputs the quantized
prefix produces. OPTQ (arXiv 2210.17323) and everything after it start here; its code keeps 2 H, we keep H.

Products of a chunk of tokens are taken in the inputs' own float32, the mean over chunks in float64: the error of a
chunk's product is a few ulp of float32 relative to H, and nothing is lost over millions of tokens. Because chunks
are averaged in float64, merging two states equals one pass over both up to 1e-15. The state is H itself, so that
layers that share it hold one matrix together. Cost: T K^2 / 2 multiply-adds, 8 K^2 bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.linalg import no_signal
from lowbit.core.parts import Observable, Observed
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome
from lowbit.core.symmetric import from_upper_bands, mix_in_product, upper_bands


@dataclass(eq=False)
class Moments:
    """mean: [K, K] float64, symmetric, the mean of x x^T, zero where there was nothing; tokens: how many x."""

    mean: Tensor
    tokens: int

    def __getstate__(self) -> tuple[Tensor, int, int]:
        """Half of the matrix travels between machines and devices."""
        return upper_bands(self.mean), len(self.mean), self.tokens

    def __setstate__(self, state: tuple[Tensor, int, int]) -> None:
        half, k, self.tokens = state
        self.mean = from_upper_bands(half, k)

    def with_product(self, x: Tensor, y: Tensor, tokens: int) -> "Moments":
        """Those of `tokens` more, whose products sum to x^T y, a symmetric matrix; uses these up. x, y: [t, K]"""
        count = self.tokens + tokens
        if tokens:
            mix_in_product(self.mean, self.tokens / count, 1 / count, x, y)
        return Moments(self.mean, count)

    def merged(self, other: "Moments") -> "Moments":
        """Those of both; uses these up."""
        count = self.tokens + other.tokens
        if other.tokens:
            self.mean.mul_(self.tokens / count).add_(other.mean, alpha=other.tokens / count)
        return Moments(self.mean, count)


def no_moments(k: int) -> Moments:
    """Of no token. k: inputs."""
    return Moments(torch.zeros(k, k, dtype=torch.float64), 0)


@dataclass(frozen=True)
class SecondMoment:
    """H = mean x x^T."""

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"inputs"})

    def init(self, k: int) -> Moments:
        return no_moments(k)

    def update(self, state: Moments, seen: Observed) -> Moments:
        x = seen["inputs"]
        return state.with_product(x, x, len(x))

    def merge(self, a: Moments, b: Moments) -> Moments:
        return a.merged(b)

    def problem(self, state: Moments, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        return LayerProblem(weight, state.mean), () if state.tokens else (no_signal(),)

    def tokens(self, state: Moments) -> int:
        return state.tokens
