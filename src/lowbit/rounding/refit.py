"""Scales refitted in the metric that counts: once the codes are chosen, each scale has a best value in closed form.

A row of W_hat is its scale times unit values, w_hat = s v. With the codes held, the loss is a parabola in s:

    s' = s (w_hat H w^T) / (w_hat H w_hat^T)        one scale for the layer: both sums over all rows

The scale that a code takes before rounding is made for nearest values of equal cost; rounding with feedback moves the
values, H weighs them, and a coarse code shrinks them, so a few per cent of the loss are left on the table. The new
scale is rounded to its stored type and kept only where the loss, computed from the decoded values, is lower: the
result is never worse than that of the rounder inside, and equals its codes decoded with the new side bit for bit.

With a row Hessian G each row takes its optimum with the others held, and all of them are kept or none.

Fits any code that declares a field "scale" of one number for the layer or one a row, which multiplies the values.
Cost: 2 N K^2 multiply-adds. Source: the closed form is least squares; lalamo's row scales and EXL3's searched global
scale serve the same end.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest
from lowbit.core.fields import Array
from lowbit.core.parts import Code, Rounder
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded


@dataclass(frozen=True)
class RefittedScales:
    """rounder: chooses the codes; refuses codes whose scales are shared by groups of columns."""

    rounder: Rounder

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        field = _scale_field(code, problem.shape)
        rounded = self.rounder.round(problem, code)
        before = rounded.side["scale"]
        factor = _best_factor(problem, rounded.w_hat, len(before)).view(before.shape)
        scale = (before.double() * factor).to(field.dtype).to(before)
        usable = torch.isfinite(scale) & (scale > 0)
        refitted = _with_scale(rounded, code, torch.where(usable, scale, before))
        better = _losses(problem, refitted.w_hat, len(before)) < _losses(problem, rounded.w_hat, len(before))
        return _with_scale(rounded, code, torch.where(better.view(before.shape), refitted.side["scale"], before))


def _scale_field(code: Code, shape: tuple[int, int]) -> Array:
    field = code.fields(shape).get("scale")
    if isinstance(field, Array) and field.shape in ((1,), (1, 1), (shape[0], 1)):
        return field
    raise BadRequest(
        f"RefittedScales needs a code with one scale for the layer or one a row; that of {type(code).__name__} is "
        f"{list(field.shape) if field else 'missing'} for a layer {list(shape)}. Use the rounder inside it alone."
    )


def _best_factor(problem: LayerProblem, w_hat: Tensor, scales: int) -> Tensor:
    """By how much each of `scales` scales (1 or N) should be multiplied; NaN where its row does not matter. [scales]"""
    value, error = w_hat.double(), (w_hat - problem.weight).double()
    slope = (_weighted(problem, error) * value).sum(1)
    if scales == 1:
        return 1 - slope.sum() / (_weighted(problem, value) * value).sum()
    own = ((value @ problem.hessian.double()) * value).sum(1)
    return 1 - slope / (own if problem.row_hessian is None else own * problem.row_hessian.double().diagonal())


def _losses(problem: LayerProblem, w_hat: Tensor, scales: int) -> Tensor:
    """The loss of each row that has a scale of its own, [N]; of all rows, [1], where scales are judged together."""
    error = (w_hat - problem.weight).double()
    rows = (_weighted(problem, error) * error).sum(1)
    return rows if scales > 1 and problem.row_hessian is None else rows.sum().expand(scales)


def _weighted(problem: LayerProblem, x: Tensor) -> Tensor:
    """G x H for x [N, K]."""
    right = x @ problem.hessian.double()
    return right if problem.row_hessian is None else problem.row_hessian.double() @ right


def _with_scale(rounded: Rounded, code: Code, scale: Tensor) -> Rounded:
    side = {**rounded.side, "scale": scale}
    values = code.decode(rounded.codes, side, torch.arange(rounded.w_hat.shape[1]))
    return replace(rounded, side=side, w_hat=values.to(rounded.w_hat))
