"""Which tokens matter: importances for `WeightedMoment`, a number >= 0 for each token before it is scaled.

Paper: RSQ (arXiv 2503.01820) tries all of these; attention concentration is its choice.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.parts import Observable, Observed


@runtime_checkable
class Importance(Protocol):
    """reads: the observables it needs."""

    @property
    def reads(self) -> frozenset[Observable]: ...

    def of(self, seen: Observed) -> Tensor:
        """The importance of each token that the layer meets, [t] float64, >= 0."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every token counts the same."""

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"places"})

    def of(self, seen: Observed) -> Tensor:
        return torch.ones(len(seen["places"]), dtype=torch.float64)


@dataclass(frozen=True)
class AttentionReceived:
    """The attention that a token receives, summed over heads and queries (RSQ's AttnCon)."""

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"places", "attention"})

    def of(self, seen: Observed) -> Tensor:
        return _at(seen["attention"].sum((1, 2), dtype=torch.float64), seen)


@dataclass(frozen=True)
class ActivationNorm:
    """The Euclidean norm of the token's input."""

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"inputs"})

    def of(self, seen: Observed) -> Tensor:
        return seen["inputs"].double().norm(dim=1)


@dataclass(frozen=True)
class TokenRarity:
    """One over the token's number of occurrences in the calibration windows (RSQ's TokenFreq: rare tokens count)."""

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"places", "token_counts"})

    def of(self, seen: Observed) -> Tensor:
        return _at(1 / seen["token_counts"].double(), seen)


@dataclass(frozen=True)
class FirstTokens:
    """1 for the first `count` tokens of a window, 0 for the others."""

    count: int

    def __post_init__(self) -> None:
        require(self.count >= 1, f"FirstTokens(count={self.count}): must be at least 1.")

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"places"})

    def of(self, seen: Observed) -> Tensor:
        return (seen["places"][:, 1] < self.count).double()


def _at(windows: Tensor, seen: Observed) -> Tensor:
    """What stands in windows [S, T] at the places of the tokens."""
    window, position = seen["places"].unbind(1)
    return windows[window, position]
