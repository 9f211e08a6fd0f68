"""The one problem everything numerical sees.

    loss(W_hat) = tr( (W_hat - W) H (W_hat - W)^T ),    H = mean of x x^T over calibration tokens
    with G:       tr( G (W_hat - W) H (W_hat - W)^T )

N = outputs, K = inputs, PyTorch's order. No module, no model name, no file.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require
from lowbit.core.symmetric import quadratic_form


@dataclass(frozen=True)
class LayerProblem:
    """Weights and what it costs to change them.

    weight: [N, K], float32 or float64, finite.
    hessian: [K, K], symmetric positive semi-definite, float64 (float32 is accepted); no factor 2.
    row_hessian: [N, N] likewise, or None for the identity.
    sensitivity: [N, K], not negative, or None where it is not known: what it costs to change single weights, for parts
        that ask (`core.parts.Sensitive`). It is no part of the loss.
    """

    weight: Tensor
    hessian: Tensor
    row_hessian: Tensor | None = None
    sensitivity: Tensor | None = None

    def __post_init__(self) -> None:
        n, k = self.weight.shape
        require(
            self.hessian.shape == (k, k),
            f"LayerProblem: weight is [{n}, {k}], so the hessian must be [{k}, {k}], got {list(self.hessian.shape)}.",
        )
        require(
            self.row_hessian is None or self.row_hessian.shape == (n, n),
            f"LayerProblem: weight is [{n}, {k}], so the row_hessian must be [{n}, {n}].",
        )
        require(
            self.sensitivity is None or self.sensitivity.shape == (n, k),
            f"LayerProblem: weight is [{n}, {k}], and so must be the sensitivity of its weights.",
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def sensitivity_for(self, part: object) -> Tensor:
        """The sensitivity [N, K]; raises BadRequest, naming `part`, where it is not known."""
        if self.sensitivity is None:
            raise BadRequest(
                f"{type(part).__name__} needs the sensitivity of single weights. Use statistic=FisherDiagonal, and "
                "beside codes that look at it no transform that mixes weights (order and scales do not)."
            )
        return self.sensitivity

    def loss(self, w_hat: Tensor) -> float:
        """The proxy loss of approximating the weight by `w_hat` [N, K]; computed in float64."""
        error = w_hat - self.weight
        if self.row_hessian is None:
            return quadratic_form(error, self.hessian)
        weighted = self.row_hessian.double() @ (error.double() @ self.hessian.double())
        return float(torch.dot(weighted.flatten(), error.double().flatten()))

    def relative_loss(self, w_hat: Tensor) -> float:
        """Loss over the loss of an all-zero layer: 0 is exact, 1 is as bad as no layer. NaN-free: 0/0 is 0."""
        whole = self.whole()
        return self.loss(w_hat) / whole if whole > 0 else 0.0

    def whole(self) -> float:
        """The loss of an all-zero layer, from products in the weight's own type."""
        if self.row_hessian is None:
            return quadratic_form(self.weight, self.hessian, self.weight.dtype)
        return self.loss(torch.zeros_like(self.weight))
