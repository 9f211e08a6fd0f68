"""Kept columns: the few inputs whose activations are huge keep their weights in float16.

Once the columns in K are free, the best values for them follow from the codes of the rest R, Q_R, in closed form,

    W_K - (Q_R - W_R) H_RK H_KK^-1,    which leaves  tr( (Q_R - W_R) S (Q_R - W_R)^T ),  S = H_RR - H_RK H_KK^-1 H_KR

so the problem left for the codes is W_R with the Schur complement S for its Hessian. OPTQ with the kept columns last
solves exactly this, one column at a time; said this way it holds for every code, rounder and transform. (A rotation
leaves no outstanding columns to keep: the answer is still right, but not worth its bits.)

Column j is kept for its sensitivity s_j = H_jj |W_j - Q_j|^2, Q_j rounded to nearest.

Cost: K c^2 + K^2 c multiply-adds for c columns, and a matrix product [T, c] x [c, N] at run time.
Paper: OWQ (Lee et al., arXiv 2306.02272). Differs from its code: every layer gets the same bits per weight, where
theirs get the same bits; codes (of zero) are stored in the kept columns' places too; H_RR is damped after the kept
columns are eliminated, so that their size does not enter; one column at least is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.linalg import one_thread
from lowbit.core.parts import Code, Correction, Shaped, code_at
from lowbit.core.problem import LayerProblem
from lowbit.sidecars.criteria import nearest_error
from lowbit.sidecars.half import as_half, no_worse

# Added to the diagonal of H_KK, as a part of it: directions that small are float32 noise.
_NOISE = 1e-6
# What an error in the codes of a kept column costs the rounder, over the mean of the others. It costs nothing, but an
# input with a zero in the Hessian would be reported as dead.
_NEXT_TO_NOTHING = 1e-6


@dataclass(frozen=True, eq=False)
class Columns:
    """index: int64 [c], ascending; values: [N, c], float32 that float16 holds; inputs: K."""

    index: Tensor
    values: Tensor
    inputs: int

    def dense(self) -> Tensor:
        matrix = self.values.new_zeros(len(self.values), self.inputs)
        matrix[:, self.index] = self.values
        return matrix

    def apply(self, x: Tensor) -> Tensor:
        return x[:, self.index] @ self.values.T.to(x.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"kept_index": self.index, "kept_weight": self.values}


@dataclass(frozen=True)
class KeptColumns:
    """The most sensitive columns beside the codes, float16.

    code: the one they are kept out of; what it makes of them by rounding to nearest is their sensitivity.
    extra_bits: bits per weight to spend, above 0. A column takes 16 / K + ceil(log2 K) / (N K); as many as fit are
    kept, but one at least.
    """

    code: Code | Shaped
    extra_bits: float = 0.01

    turns = 1

    def __post_init__(self) -> None:
        require(self.extra_bits > 0, f"KeptColumns(extra_bits={self.extra_bits}): must be above 0. Use 0.01.")

    def count(self, shape: tuple[int, int]) -> int:
        """How many columns of a layer [N, K] are kept."""
        n, k = shape
        return max(1, int(self.extra_bits * n * k / (16 * n + _index_bits(k))))

    def check(self, shape: tuple[int, int]) -> None:
        code_at(self.code, shape).check(shape)
        count, k = self.count(shape), shape[1]
        require(
            count <= k,
            f"KeptColumns(extra_bits={self.extra_bits}) is more than the {16 + _index_bits(k) / shape[0]:.2f} bits per "
            f"weight that keeping all {k} inputs of a {list(shape)} layer takes. Use fewer bits: 0.01 to 0.5.",
        )

    def start(self, problem: LayerProblem) -> Columns:
        kept = self._sensitivity(problem).topk(self.count(problem.shape)).indices.sort().values
        return Columns(kept, as_half(problem.weight[:, kept], self), problem.shape[1])

    def rest(self, problem: LayerProblem, correction: Correction) -> LayerProblem:
        assert isinstance(correction, Columns)
        kept = correction.index
        weight, hessian = problem.weight.clone(), problem.hessian.double().clone()
        weight[:, kept] = 0
        hessian -= hessian[:, kept] @ _feedback(hessian, kept).T
        hessian[kept], hessian[:, kept] = 0, 0
        # A difference of large numbers: the diagonal of what the kept inputs explain entirely may end below zero.
        hessian.diagonal().clamp_(min=0)
        hessian[kept, kept] = _NEXT_TO_NOTHING * hessian.diagonal().mean()
        sensitivity = None if problem.sensitivity is None else problem.sensitivity.index_fill(1, kept, 0)
        return LayerProblem(weight, (hessian + hessian.T) / 2, problem.row_hessian, sensitivity)

    def fit(self, problem: LayerProblem, correction: Correction, w_hat: Tensor) -> Columns:
        assert isinstance(correction, Columns)
        kept, error = correction.index, (w_hat - problem.weight).double()
        error[:, kept] = 0
        best = problem.weight[:, kept] - error @ _feedback(problem.hessian.double(), kept)
        after = Columns(kept, as_half(best - w_hat[:, kept], self), correction.inputs)
        return no_worse(problem, w_hat, correction, after)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        count = self.count(shape)
        return {
            "kept_index": Bits((count,), _index_bits(shape[1])),
            "kept_weight": Array((shape[0], count), torch.float16),
        }

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Columns:
        """Raises BadRequest where the index does not name columns of the layer in ascending order."""
        index = tensors["kept_index"].long()
        require(
            bool((index.diff() > 0).all()) and int(index[-1]) < shape[1],
            f"tensor kept_index does not name {len(index)} of {shape[1]} inputs in ascending order.",
        )
        return Columns(index, tensors["kept_weight"].float(), shape[1])

    def _sensitivity(self, problem: LayerProblem) -> Tensor:
        """What rounding a column to nearest costs by itself, float64 [K]."""
        return problem.hessian.double().diagonal() * nearest_error(self.code, problem).square().sum(0)


def _index_bits(k: int) -> int:
    return max(1, (k - 1).bit_length())


def _feedback(hessian: Tensor, kept: Tensor) -> Tensor:
    """H_:K H_KK^-1, [K, c]: how the kept columns answer an error in any column."""
    own = hessian[kept][:, kept]
    own.diagonal().add_(_NOISE * own.diagonal() + torch.finfo(own.dtype).tiny)
    with one_thread():
        return torch.linalg.solve(own, hessian[kept]).T
