"""Quantize one layer: what a recipe means."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lowbit.core.fields import bits_per_weight
from lowbit.core.histogram import around_zero
from lowbit.core.limit import bits_above, loss_limit
from lowbit.core.order import visit
from lowbit.core.parts import Correction
from lowbit.core.problem import LayerProblem
from lowbit.core.recipe import Recipe
from lowbit.core.records import FittedTransform, Guarantee, Outcome, Side
from lowbit.core.stored import codes_from_fields, codes_to_fields

SAMPLED_ROWS = 256
"""Of a layer, for its loss to nearest."""


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A layer [N, K] as it is stored.

    guarantee: the rounder's, where it holds for the loss in the layer's own coordinates.
    stats: filled by the solve and empty for a layer read back. loss, relative_loss, bits_per_weight;
    nearest_relative_loss, see `_nearest_loss`; limit, what no code of so many bits can expect to get below, and
    bits_above_limit, None where nothing can be lost; bound and clamped, those of the guarantee; histograms of the
    weights and of their errors. JSON-ready.
    """

    recipe: Recipe
    shape: tuple[int, int]
    codes: Tensor
    side: Side
    transform: FittedTransform
    correction: Correction | None = None
    outcomes: tuple[Outcome, ...] = ()
    guarantee: Guarantee | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)

    def dequantize(self) -> Tensor:
        """The weight [N, K] that the stored tensors stand for, float32."""
        columns = torch.arange(self.shape[1])
        weight = self.transform.undo(self.recipe.code_at(self.shape).decode(self.codes, self.side, columns))
        return weight if self.correction is None else weight + self.correction.dense()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store, by field name (see `Recipe.fields`); integers are not packed yet."""
        codes = codes_to_fields(self.recipe.code_at(self.shape), self.codes, self.side)
        stored = {**codes, **self.side, **self.recipe.transform.tensors(self.transform)}
        if self.correction is not None:
            stored |= self.correction.tensors()
        return {name: stored[name] for name in self.recipe.fields(self.shape)}


def quantize_layer(problem: LayerProblem, recipe: Recipe, rng: torch.Generator) -> QuantizedLayer:
    """Solve `problem` with the parts of `recipe`; `rng` feeds whatever is random in them."""
    recipe.check(problem.shape)
    bits = bits_per_weight(recipe.fields(problem.shape), problem.shape)
    limit = loss_limit(problem, bits)  # before the solve: its workspace is as large as the Hessian
    layer = _solved(problem, recipe, rng)
    return replace(layer, stats=_stats(layer, problem, bits, limit))


def restore_layer(recipe: Recipe, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> QuantizedLayer:
    """A layer from its stored tensors (unpacked), by field name."""
    code = recipe.code_at(shape)
    side = {name: tensors[name] for name in code.fields(shape) if name != "codes"}
    transform = recipe.transform.restore(tensors, shape)
    correction = recipe.side_car.restore(tensors, shape) if recipe.side_car is not None else None
    return QuantizedLayer(recipe, shape, codes_from_fields(code, tensors, shape), side, transform, correction)


def _solved(problem: LayerProblem, recipe: Recipe, rng: torch.Generator) -> QuantizedLayer:
    """The answer of the codes, and of the side-car where there is one: the best of its turns."""
    side_car = recipe.side_car
    if side_car is None:
        return _coded(problem, recipe, rng)
    correction, tried = side_car.start(problem), []
    for _ in range(side_car.turns):
        coded = _coded(side_car.rest(problem, correction), recipe, rng)
        correction = side_car.fit(problem, correction, coded.dequantize())
        tried.append(replace(coded, correction=correction, guarantee=None))
    return min(tried, key=lambda layer: problem.loss(layer.dequantize()))


def _coded(problem: LayerProblem, recipe: Recipe, rng: torch.Generator) -> QuantizedLayer:
    """The codes' answer, with nothing beside them."""
    fitted = recipe.transform.fit(problem, rng)
    inner, code = fitted.forward(problem), recipe.code_at(problem.shape)
    if fitted.order is None:
        rounded = recipe.rounder.round(inner, code)
    else:
        rounded = visit(recipe.rounder, inner, code, fitted.order)
    promised = rounded.guarantee
    if problem.row_hessian is None and not fitted.left.is_orthogonal:
        promised = None  # outputs of other sizes were rounded, whose loss is another
    return QuantizedLayer(recipe, problem.shape, rounded.codes, rounded.side, fitted, None, rounded.outcomes, promised)


def _nearest_loss(layer: QuantizedLayer, problem: LayerProblem) -> float | None:
    """The relative loss before the rounder has its say: every weight at the nearest value that the layer's own
    transform and side information leave it, so that the choice of the codes is all that differs.

    None for codes of several weights at a time, whose encoding is most of a solve and would be run a second time, and
    beside a side-car, which is fitted to the codes that were chosen. Without a row Hessian the losses of rows add up,
    and a sample of them tells.
    """
    code = layer.recipe.code_at(layer.shape)
    if math.prod(code.tile) > 1 or layer.correction is not None:
        return None
    _, values = code.encode(layer.transform.apply(problem.weight), layer.side, torch.arange(layer.shape[1]))
    w_hat = layer.transform.undo(values)
    if problem.row_hessian is not None:
        return problem.relative_loss(w_hat)
    rows = slice(None, None, math.ceil(layer.shape[0] / SAMPLED_ROWS))
    return LayerProblem(problem.weight[rows], problem.hessian).relative_loss(w_hat[rows])


def _stats(layer: QuantizedLayer, problem: LayerProblem, bits: float, limit: float) -> dict[str, Any]:
    nearest, w_hat = _nearest_loss(layer, problem), layer.dequantize()
    loss, whole = problem.loss(w_hat), problem.whole()
    return {
        "loss": loss,
        "relative_loss": loss / whole if whole > 0 else 0.0,
        "nearest_relative_loss": nearest,
        "bits_per_weight": bits,
        "limit": limit,
        "bits_above_limit": bits_above(loss, limit),
        "bound": None if layer.guarantee is None else layer.guarantee.bound,
        "clamped": None if layer.guarantee is None else layer.guarantee.clamped,
        "weights": around_zero(problem.weight),
        "errors": around_zero(w_hat - problem.weight),
    }
