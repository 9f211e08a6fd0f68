"""The cross moment: aim at what the original model computes, from the inputs that the quantized model provides.

Earlier layers are quantized already, so a layer meets z where the original model has x. The error that counts is
W x - W_hat z, and its mean square splits into what no W_hat can avoid and the usual proxy loss for another target:

    E |W x - W_hat z|^2 = mismatch + tr( (W_hat - W') H (W_hat - W')^T ),    H = E[z z^T],  C = E[x z^T]
    W' = W (C + lambda I) (H + lambda I)^-1 = W + W (C - H) (H + lambda I)^-1

Rounding W' by OPTQ is Qronos in its projection form; any other rounder, code or transform goes with it as well. Both
moments get lambda: on H alone it would draw W' to zero instead of to W. The problem's weight is W', so its proxy loss
counts from the best that this layer can do, not from W; the mismatch is no part of it. C - H is gathered as the mean
of (x - z) z^T, with nothing lost to cancellation.

Where z is x, W' is W bit for bit. A token that reaches the layer in one model only cannot be compared: the pipeline
sends tokens to the same experts in both.

Cost: 3/2 T K^2 multiply-adds, a factorisation, N K^2; a second run of the original blocks.
Papers: Qronos (arXiv 2505.11695), whose lambda is 1e-6 of the largest eigenvalue: with 16,000 calibration tokens
that made the demo model's KL at 2 bits 1.22, where plain OPTQ has 0.34 and 1e-3 has 0.26. The same target is the
asymmetric calibration of GPTAQ (arXiv 2504.02692). Differs from Qronos's first step, where the first column alone is
rounded before W' replaces W: the authors' own later code projects first, as here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import no_signal, one_thread, unit_upper_factor
from lowbit.core.parts import Observable, Observed
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome
from lowbit.core.symmetric import mix_in_any_product
from lowbit.statistics.second_moment import Moments, no_moments

_POWER_STEPS = 30


@dataclass(eq=False)
class CrossMoments:
    """own: moments of z; shift: [K, K] float64, the mean of (x - z) z^T, rows of x - z and columns of z."""

    own: Moments
    shift: Tensor


@dataclass(frozen=True)
class CrossMoment:
    """H = E[z z^T] and the target W'. damping: lambda as a fraction of the largest eigenvalue of H, 0 to 0.01."""

    damping: float = 1e-3

    def __post_init__(self) -> None:
        require(0 <= self.damping <= 0.01, f"CrossMoment(damping={self.damping!r}): must be 0 to 0.01. Use 1e-3.")

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"inputs", "float_inputs"})

    def init(self, k: int) -> CrossMoments:
        return CrossMoments(no_moments(k), torch.zeros(k, k, dtype=torch.float64))

    def update(self, state: CrossMoments, seen: Observed) -> CrossMoments:
        z, x = seen["inputs"], seen["float_inputs"]
        count = state.own.tokens + len(z)
        if len(z):
            mix_in_any_product(state.shift, state.own.tokens / count, 1 / count, x - z, z)
        return CrossMoments(state.own.with_product(z, z, len(z)), state.shift)

    def merge(self, a: CrossMoments, b: CrossMoments) -> CrossMoments:
        count = max(1, a.own.tokens + b.own.tokens)
        a.shift.mul_(a.own.tokens / count).add_(b.shift, alpha=b.own.tokens / count)
        return CrossMoments(a.own.merged(b.own), a.shift)

    def problem(self, state: CrossMoments, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        H = state.own.mean
        if not state.own.tokens:
            return LayerProblem(weight, H), (no_signal(),)
        pull = weight.double() @ state.shift
        if not bool(pull.any()):
            return LayerProblem(weight, H), ()
        shift, outcomes = _times_inverse(pull, H, self.damping)
        return LayerProblem((weight + shift).to(weight.dtype), H), outcomes

    def tokens(self, state: CrossMoments) -> int:
        return state.own.tokens


def _times_inverse(pull: Tensor, H: Tensor, damping: float) -> tuple[Tensor, tuple[Outcome, ...]]:
    """pull (H + lambda I)^-1 for pull [N, K], through H + lambda I = A diag(d) A^T."""
    factor = unit_upper_factor(H, damping * _largest_eigenvalue(H) / float(H.diagonal().mean()))
    A = factor.unit_upper
    half = torch.linalg.solve_triangular(A.T, pull, upper=False, left=False)
    return torch.linalg.solve_triangular(A, half / factor.diagonal, upper=True, left=False), factor.outcomes


def _largest_eigenvalue(H: Tensor) -> float:
    """Of a positive semi-definite matrix [K, K], by power iteration from the diagonal's direction."""
    v = H.diagonal().sqrt()
    with one_thread():
        for _ in range(_POWER_STEPS):
            v = H @ (v / v.norm())
        return float(v.norm())
