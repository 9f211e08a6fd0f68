"""Dual-grained scales: a float scale for each row and a small whole number for each group, so that a row's products
with 8-bit activations add up in integers and are scaled once.

    value = scale_row k_group (q - z_group),    q, z of b bits, k from 1 on, |k (q - z)| <= 127

Groups get end points as on any integer grid; their steps are then measured in units of the row's scale, which is the
one of `steps` candidates around max |w| / 127 that costs least. Codes that leave 8 bits are read as the last that does
not.

Bits per weight: b + (8 + b) / g + 16 / K.
Paper: DGQ (arXiv 2310.04836). Differs from its code: costs are weighted column by column instead of measured on one
batch of inputs; its percentile smoothing of activations is a transform.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.codes.lookup import as_float16, replaced, working
from lowbit.codes.ranges import Levels, Range, SearchedRange
from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side

TOP = 127
# Row scales tried, in units of max |w| / 127; above 1 for rows whose largest step is a little below what 8 bits hold.
_LARGEST_FRACTION, _SMALLEST_FRACTION = 1.1, 0.2


@dataclass(frozen=True)
class DualGrained:
    """bits: 1 to 6. range: how a group's end points are found. steps: row scales tried, at least 1."""

    bits: int = 4
    range: Range = SearchedRange(0.8, 20, 2.0)
    steps: int = 80

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 6, f"DualGrained(bits={self.bits!r}): must be 1 to 6.")
        require(self.steps >= 1, f"DualGrained(steps={self.steps}): must be at least 1. Use 80.")

    def costs(self, problem: LayerProblem) -> Tensor | None:
        return self.range.importance(problem)

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        return {
            "scale": Array((rows, 1), torch.float16),
            "group_scale": Bits((rows, groups), 8),
            "zero": Bits((rows, groups), self.bits),
        }

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        step, zero = self._ideal(groups, importance)
        largest = groups.abs().amax((1, 2))[:, None] / TOP
        best, least = None, None
        for fraction in torch.linspace(_LARGEST_FRACTION, _SMALLEST_FRACTION, self.steps).tolist():
            scale = as_float16(self, fraction * largest).clamp_min(2.0**-24)
            side = {"scale": scale, "group_scale": _whole(step / scale), "zero": zero}
            errors = (self._rounded(groups, side) - groups).square()
            tried = (errors if importance is None else errors * importance).sum((1, 2))[:, None]
            if best is None or least is None:
                best, least = side, tried
            better = tried < least
            best = {name: torch.where(better, side[name], best[name]) for name in side}
            least = torch.minimum(tried, least)
        assert best is not None
        return best

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        step, zero = self._ideal(groups, importance)
        return replaced(side, {"group_scale": _whole(step / side["scale"]), "zero": zero}, at)

    def of(self, side: Side, at: Tensor) -> Tensor:
        whole, zero = working(side["group_scale"])[:, at], working(side["zero"])[:, at]
        codes = torch.arange(2**self.bits, dtype=whole.dtype)
        steps = _kept(codes - zero[..., None], whole[..., None])
        return working(side["scale"])[..., None] * (whole[..., None] * steps)

    def _ideal(self, groups: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
        """The step and zero point [R, G] that groups would have on their own."""
        flat, costs = groups.flatten(0, 1), None if importance is None else importance.flatten(0, 1)
        step, zero = self.range.fit(flat, costs, Levels(self.bits, False, torch.float32))
        return step.view(groups.shape[:2]), zero.view(groups.shape[:2])

    def _rounded(self, groups: Tensor, side: Side) -> Tensor:
        """The nearest values [R, G, g]."""
        whole, zero = side["group_scale"][..., None], side["zero"][..., None]
        unit = side["scale"][..., None] * whole
        steps = (groups / unit).round().clamp(-zero, 2**self.bits - 1 - zero)
        return unit * _kept(steps, whole)


def _whole(ratio: Tensor) -> Tensor:
    return ratio.round().clamp(1, TOP)


def _kept(steps: Tensor, whole: Tensor) -> Tensor:
    """Steps away from zero that stay within 8 bits when multiplied by `whole`."""
    most = (TOP / whole).floor()
    return torch.minimum(torch.maximum(steps, -most), most)
