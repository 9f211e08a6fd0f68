"""What the parts hand to each other: frozen records without behaviour of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lowbit.core.maps import Identity, LinearMap, Permutation, keeps_features_apart
from lowbit.core.problem import LayerProblem
from lowbit.core.symmetric import symmetrize

Side = Mapping[str, Tensor]
"""Side information of a code by field name: scales, zero points, tables. Names without a field are working values."""


@dataclass(frozen=True)
class Outcome:
    """Something that did not go as asked: what kind, what happened, what to do about it."""

    kind: str
    detail: str
    remedy: str


@dataclass(frozen=True)
class Guarantee:
    """What a theorem promises of a rounder's loss.

    bound: the loss that no weights of this size exceed. clamped: the share of weights, 0 to 1, that left the code's
    range on the way; the promise holds where it is 0.
    """

    bound: float
    clamped: float


@dataclass(frozen=True, eq=False)
class Rounded:
    """The answer of a rounder.

    codes: unsigned integers, [row tiles, column tiles, ...] as the code defines them ([N, K] for scalar codes).
    w_hat: [N, K], equal bit for bit to decoding `codes` with `side`.
    guarantee: of the loss that w_hat has; None where no theorem applies.
    """

    codes: Tensor
    side: Side
    w_hat: Tensor
    outcomes: tuple[Outcome, ...] = ()
    guarantee: Guarantee | None = None


@dataclass(frozen=True, eq=False)
class FittedTransform:
    """A function-preserving change of coordinates: W' = L W R^-1, H' = R H R^T, y = L^-1 W' R x.

    left [N], right [K]: maps of the output and the input features.
    order: where given, columns are *visited* in this order but stored in their own; it costs nothing to store.
    parts: the fitted parts of a chain, in the order they were applied; empty for a single transform.
    """

    left: LinearMap = field(default_factory=Identity)
    right: LinearMap = field(default_factory=Identity)
    order: Permutation | None = None
    parts: tuple["FittedTransform", ...] = ()

    def forward(self, problem: LayerProblem) -> LayerProblem:
        """The same problem in the new coordinates; the sensitivity of weights is unknown once they are mixed."""
        hessian = problem.hessian
        if not isinstance(self.right, Identity):  # whose Hessian stays the very same, so that layers can share it
            hessian = symmetrize(self.right.apply(self.right.apply(hessian).T))
        row_hessian = problem.row_hessian
        if row_hessian is not None:
            out = self.left.inverse().transpose()
            row_hessian = out.apply(out.apply(row_hessian).T)
        weight, sensitivity = self.apply(problem.weight), self._sensitivity(problem.sensitivity)
        return LayerProblem(weight, hessian, row_hessian, sensitivity)

    def apply(self, weight: Tensor) -> Tensor:
        """[N, K] in the layer's own coordinates to the new ones: W' = L W R^-1."""
        return self.left.apply(self.right.inverse().transpose().apply(weight).T).T.contiguous()

    def _sensitivity(self, before: Tensor | None) -> Tensor | None:
        """A gradient by W' is L^-T g R^T; where L and R keep weights apart, so are the roots of its mean squares."""
        if before is None or not (keeps_features_apart(self.left) and keeps_features_apart(self.right)):
            return None
        out = self.left.inverse().transpose()
        return out.apply(self.right.apply(before.sqrt()).T).T.square().contiguous()

    def undo(self, weight: Tensor) -> Tensor:
        """[N, K] in the new coordinates back to the layer's own: W = L^-1 W' R."""
        return self.left.inverse().apply(self.right.transpose().apply(weight).T).T.contiguous()
