"""The path through a bitshift trellis that comes nearest to a sequence of targets.

A state is L bits; each step of b bits shifts new ones in at the low end and emits the state's value, V numbers:

    state_t = (state_(t-1) 2^b + new_t) mod 2^L,      minimise  sum over t of |target_t - value[state_t]|^2

The Viterbi algorithm keeps, for every *edge* (the L - b bits that two neighbouring states share), the cost of the
best path that ends in it. `search_reference` is the oracle, exact in float64; `search` does the same in 16-bit
integers (`viterbi_numba`). `tail_biting` closes the path: the last L - b bits are those before the first step, so a
sequence of T steps is b T bits and nothing else.

Papers: QTIP (arXiv 2406.11235), section 3.1 and algorithm 4 for tail-biting. Differs from its code: the seam is
settled on a window around it, of any length (its whole sequence is the default); integers.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.kernels import viterbi_numba


@dataclass(frozen=True, eq=False)
class Trellis:
    """values: [2^L, V], float32; bits: b, those that enter at a step, 1 to 8 and below L."""

    values: Tensor
    bits: int

    @property
    def edges(self) -> int:
        return len(self.values) >> self.bits

    @functools.cached_property
    def integer(self) -> viterbi_numba.IntegerTrellis:
        return viterbi_numba.prepare(self.values, self.bits)


Search = Callable[[Tensor, Trellis, Tensor, Tensor], Tensor]


def search_reference(targets: Tensor, trellis: Trellis, first: Tensor, last: Tensor) -> Tensor:
    """The states [B, T] int32 of the best paths.

    targets: [B, T, V], L <= b T. first, last: int64 [B], the edge before the first step and the one after the last,
    -1 where free; of `first` all are free or none.
    """
    values, bits, edges = trellis.values.double(), trellis.bits, trellis.edges
    allowed = (torch.arange(edges) == first[:, None]) | (first < 0)[:, None]
    cost, decisions = torch.where(allowed, 0.0, torch.inf).double(), []
    for target in targets.double().unbind(1):
        distance = (values[None] - target[:, None]).square().sum(-1)
        arriving = cost.repeat_interleave(1 << bits, 1) + distance
        cost, decision = arriving.view(-1, 1 << bits, edges).min(1)
        decisions.append(decision)
    edge, states = torch.where(last < 0, cost.argmin(1), last), []
    for decision in reversed(decisions):
        state = decision.gather(1, edge[:, None])[:, 0] * edges + edge
        states.append(state.int())
        edge = state >> bits
    return torch.stack(states[::-1], 1)


def search(targets: Tensor, trellis: Trellis, first: Tensor, last: Tensor) -> Tensor:
    """As `search_reference`, in 16-bit integers, by numba. Targets beyond 1.3 times the largest value are clipped."""
    return viterbi_numba.search(targets, trellis.integer, first, last)


def anywhere(targets: Tensor) -> Tensor:
    """The `first` or `last` of paths whose ends are free."""
    return torch.full((len(targets),), -1, dtype=torch.int64)


def tail_biting(targets: Tensor, trellis: Trellis, window: int | None = None, by: Search = search) -> Tensor:
    """The states [B, T] of good closed paths: the edge after the last step is the edge before the first.

    The edge at the seam is read off the best open path through `window` steps on each side of it (None for half the
    sequence), then the best path with both ends there is taken. Arguments as for `search_reference`.
    """
    steps = targets.shape[1]
    window = steps // 2 if window is None else min(window, steps // 2)
    around = torch.cat([targets[:, steps - window :], targets[:, :window]], 1)
    before = by(around, trellis, anywhere(targets), anywhere(targets))[:, window - 1]
    seam = before.long() & (trellis.edges - 1)
    return by(targets, trellis, seam, seam)
