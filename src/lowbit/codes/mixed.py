"""Bits given to groups of columns by salience, their sum kept: some groups get one bit more, as many get one less.

    salience of a group = sum over its weights of w^2 d_j,     H = A diag(d) A^T

Groups are ranked by it. For every n the n first would be given b + 1 bits and the n last b - 1; the n is taken whose
rounding costs sum d_j (w - Q(w))^2 are least, n = 0 among them. Groups of one bit have levels at plus and minus a
scale. All rows share the widths. Laid out as `codes.layout.Exchanged`, the layer takes b bits a weight.

Bits per weight: b + (16 + b + 1) / g + 4 / (N g).
Paper: SliM-LLM (arXiv 2405.14917). Differs from its code: the number of exchanged bits is found by the rounding costs
of the layer's own columns, not by a divergence of softmaxed outputs; n = 0 is a candidate; its weighting of salient
entries in the search of ranges is the weighting of their columns; zero points have b + 1 bits in every group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.codes.lookup import as_float16, replaced, working
from lowbit.codes.ranges import HessianRange, Levels
from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side


@dataclass(frozen=True)
class MixedWidths:
    """average: 2 to 7 bits. range: how end points are found, and d."""

    average: int = 2
    range: HessianRange = HessianRange()

    def __post_init__(self) -> None:
        require(2 <= self.average <= 7, f"MixedWidths(average={self.average!r}): must be 2 to 7 bits.")

    @property
    def bits(self) -> int:
        return self.average + 1

    def costs(self, problem: LayerProblem) -> Tensor | None:
        return self.range.importance(problem)

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        return {
            "scale": Array((rows, groups), torch.float16),
            "zero": Bits((rows, groups), self.bits),
            "width": Bits((groups,), 4),
        }

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        costs = torch.ones_like(groups) if importance is None else importance
        fitted = {bits: self._fit(groups, costs, bits) for bits in self._widths}
        spent = {
            bits: (costs * (groups - _nearest(groups, *fitted[bits], bits)).square()).double().sum((0, 2))
            for bits in self._widths
        }
        width = self._allocated((costs * groups.square()).double().sum((0, 2)), spent)
        return {**self._chosen(fitted, width), "width": width}

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        costs = torch.ones_like(groups) if importance is None else importance
        fitted = {bits: self._fit(groups, costs, bits) for bits in self._widths}
        return replaced(side, self._chosen(fitted, side["width"][at]), at)

    def of(self, side: Side, at: Tensor) -> Tensor:
        scale, zero = working(side["scale"])[:, at, None], working(side["zero"])[:, at, None]
        width = side["width"].long()[at][:, None]
        codes = torch.arange(2**self.bits)
        steps = torch.minimum(codes, 2**width - 1).to(scale.dtype)
        return scale * torch.where(width == 1, 2 * steps - 1, steps - zero)

    @property
    def _widths(self) -> tuple[int, int, int]:
        return self.average - 1, self.average, self.average + 1

    def _fit(self, groups: Tensor, costs: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point [R, G] of groups at so many bits."""
        if bits == 1:
            scale = (costs * groups.abs()).sum(-1) / costs.sum(-1)
            return as_float16(self, scale).clamp_min(2.0**-24), torch.zeros_like(scale)
        scale, zero = self.range.fit(groups.flatten(0, 1), costs.flatten(0, 1), Levels(bits, False, torch.float16))
        return as_float16(self, scale).view(groups.shape[:2]), zero.view(groups.shape[:2])

    def _allocated(self, salience: Tensor, spent: dict[int, Tensor]) -> Tensor:
        """The width of each group, [G] int64, for what each costs at each width."""
        order = salience.argsort(descending=True, stable=True)
        narrow, usual, wide = (spent[bits][order] for bits in self._widths)
        gains = (usual - wide + (usual - narrow).flip(0))[: len(order) // 2].cumsum(0)
        n = int(gains.argmax()) + 1 if len(gains) and float(gains.max()) > 0 else 0
        width = torch.full_like(order, self.average)
        width[order[:n]] += 1
        width[order[len(order) - n :]] -= 1
        return width

    def _chosen(self, fitted: dict[int, tuple[Tensor, Tensor]], width: Tensor) -> dict[str, Tensor]:
        scale, zero = fitted[self.average]
        for bits, (other_scale, other_zero) in fitted.items():
            scale = torch.where(width == bits, other_scale, scale)
            zero = torch.where(width == bits, other_zero, zero)
        return {"scale": scale, "zero": zero}


def _nearest(groups: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    scale, zero = scale[..., None], zero[..., None]
    if bits == 1:
        return torch.where(groups > 0, scale, -scale)
    return scale * ((groups / scale).round().clamp(-zero, 2**bits - 1 - zero))
