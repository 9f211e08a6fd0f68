"""The second moment of inputs that do not count the same: H = mean of r x x^T, r a token's importance.

Importances are scaled within each window, first to [minimum, 1], then to a mean of 1, so that windows weigh the same:

    r = minimum + (1 - minimum) (a - min a) / (max a - min a),    H = mean over windows of X^T diag(r / sum r) X

A window whose tokens are equally important counts as in the plain second moment, bit for bit; one whose importances are
all zero does not count, and the outcome says how many. The scale is that of r in H, not of x: the authors scale x by
the root of r, and so does this.

An expert of a mixture meets some tokens of each window; they are scaled among themselves.

Cost: as the second moment, and what the importance takes to observe.
Paper: RSQ (arXiv 2503.01820), minimum 0.005. Differs from the authors' code: no cyclic shifts of the text;
importance is that of the block in its original weights on inputs that the quantized prefix produces.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import no_signal
from lowbit.core.parts import Observable, Observed
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome
from lowbit.statistics.importance import AttentionReceived, Importance
from lowbit.statistics.second_moment import Moments, no_moments


@dataclass(eq=False)
class WeightedMoments:
    """moments: of weighted tokens; ignored: tokens beside them, in windows whose importances are all zero."""

    moments: Moments
    ignored: int


@dataclass(frozen=True)
class WeightedMoment:
    """H = mean r x x^T. minimum: of r before it is scaled to a mean of 1, relative to the largest, 0 to 1."""

    importance: Importance = field(default_factory=AttentionReceived)
    minimum: float = 0.005

    def __post_init__(self) -> None:
        require(0 <= self.minimum <= 1, f"WeightedMoment(minimum={self.minimum!r}): must be 0 to 1. Use 0.005.")

    @property
    def reads(self) -> frozenset[Observable]:
        return self.importance.reads | {"inputs", "places"}

    def init(self, k: int) -> WeightedMoments:
        return WeightedMoments(no_moments(k), 0)

    def update(self, state: WeightedMoments, seen: Observed) -> WeightedMoments:
        x, window = seen["inputs"], seen["places"][:, 0]
        importance = self.importance.of(seen)
        counts = _largest(importance, window) > 0
        r = torch.where(counts, _scaled(importance, window, self.minimum), 0).to(x.dtype)
        moments = state.moments.with_product(x * r[:, None], x, int(counts.sum()))
        return WeightedMoments(moments, state.ignored + int((~counts).sum()))

    def merge(self, a: WeightedMoments, b: WeightedMoments) -> WeightedMoments:
        return WeightedMoments(a.moments.merged(b.moments), a.ignored + b.ignored)

    def problem(self, state: WeightedMoments, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        outcomes = (_unimportant(state.ignored, self.tokens(state)),) if state.ignored else ()
        if not state.moments.tokens:
            outcomes = (*outcomes, no_signal())
        return LayerProblem(weight, state.moments.mean), outcomes

    def tokens(self, state: WeightedMoments) -> int:
        return state.moments.tokens + state.ignored


def _unimportant(ignored: int, tokens: int) -> Outcome:
    return Outcome(
        "no importance",
        f"{ignored} of {tokens} tokens lie in windows where every token has importance zero: they do not count.",
        "Use another importance, such as Uniform, or more varied text.",
    )


def _scaled(importance: Tensor, window: Tensor, minimum: float) -> Tensor:
    """importance [t] in [minimum, 1] within each window, then over its mean there; 1 where all are the same."""
    lowest, highest = -_largest(-importance, window), _largest(importance, window)
    spread = highest - lowest
    r = torch.where(spread > 0, minimum + (1 - minimum) * (importance - lowest) / spread.clamp_min(1e-300), 1.0)
    windows = int(window.max()) + 1
    sums = torch.zeros(windows, dtype=r.dtype).index_add_(0, window, r)
    return r * (torch.bincount(window, minlength=windows) / sums)[window]


def _largest(a: Tensor, window: Tensor) -> Tensor:
    """The largest of a [t] in each token's window, [t]."""
    found = torch.full((int(window.max()) + 1,), -torch.inf, dtype=a.dtype)
    return found.scatter_reduce_(0, window, a, "amax")[window]
