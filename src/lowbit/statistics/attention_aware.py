"""What attention minds: two-sided problems for the layers that feed it.

Changing the queries of a head by D x changes its logits by K_h D x, so the error that counts is |K_h D X|^2, and

    layer     H                                         G, one block for each head
    query     mean x x^T                                mean over tokens of R_t^T (mean k k^T) R_t
    key       mean x x^T                                mean over tokens of R_t^T (mean q q^T) R_t
    value     mean of X^T A^T A X over windows, heads   W_h^T W_h, W_h the head's part of the output projection
    others    mean x x^T                                none

R_t stands for whatever the model does between the layer and its attention (rotary embeddings, norms), differentiated
exactly. Heads that share keys and values are averaged. Three relaxations make these Kronecker products: the softmax and
the causal mask are left out for queries and keys; a mean of products is taken as the product of means; the values'
H, in the paper one a head, is averaged over heads, for a problem has one H. A fused layer gets blocks for all its rows
and the plain H.

Only rounders for problems with a row Hessian make use of G.

Cost: as the second moment for each of query, key and value apart; d gradients through R_t for each.
Paper: BoA (arXiv 2406.13474). Differs from the authors' code: G for values is the paper's, theirs is the identity; the
statistics are those of the block in its original weights on inputs that the quantized prefix produces.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.linalg import no_signal
from lowbit.core.parts import Observable, Observed
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Outcome
from lowbit.statistics.second_moment import Moments, no_moments


@dataclass(eq=False)
class AttentionMoments:
    """moments: of mixed inputs; curvature: [B, d, d] float64, summed over tokens, or None for no attention."""

    moments: Moments
    curvature: Tensor | None


@dataclass(frozen=True)
class AttentionAware:
    """Two-sided for the layers that feed attention, the second moment for the others."""

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"inputs", "mixing", "output_curvature"})

    def init(self, k: int) -> AttentionMoments:
        return AttentionMoments(no_moments(k), None)

    def update(self, state: AttentionMoments, seen: Observed) -> AttentionMoments:
        x = seen["inputs"]
        moments = state.moments.with_product(x, _mixed(x, seen), len(x))
        return AttentionMoments(moments, _sum(state.curvature, seen.get("output_curvature")))

    def merge(self, a: AttentionMoments, b: AttentionMoments) -> AttentionMoments:
        return AttentionMoments(a.moments.merged(b.moments), _sum(a.curvature, b.curvature))

    def problem(self, state: AttentionMoments, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        if not state.moments.tokens:
            return LayerProblem(weight, state.moments.mean), (no_signal(),)
        rows = None
        if state.curvature is not None:
            blocks = (state.curvature + state.curvature.mT) / (2 * state.moments.tokens)
            rows = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        return LayerProblem(weight, state.moments.mean, rows), ()

    def tokens(self, state: AttentionMoments) -> int:
        return state.moments.tokens


def _mixed(x: Tensor, seen: Observed) -> Tensor:
    """A^T A X, averaged over heads, where the layer's outputs are averaged by attention; else X. x: [t, K]"""
    if "mixing" not in seen:
        return x
    mixing = seen["mixing"]
    return (mixing @ x.view(len(mixing), -1, x.shape[1])).view_as(x)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
