"""A fixed set of levels times a scale for each group: float formats, NormalFloat, dINT, power grids, MX and NV blocks.

    value = scale t[code],    t one of the named sets of `codes.levels`, scale stored as `codes.scales` says

Where a set reaches further on one side than on the other, the scale takes the sign that turns it the way the group
leans, if its type has signs. The scale is the smallest that clips nothing, or a searched fraction of it. Of several
sets the best is taken, for each group or for the layer: which exponent and mantissa (LLM-FP4), which power (NUPES).

Bits per weight: b and the scales' own, with several sets 8 / (N K) or 8 / g for the choice. b is the least with room
for the largest set.
Papers: see `codes.levels`. Differs from LLM-FP4: its real-valued exponent bias is a scale, which is the same thing; the
range is searched by weighted squared error in place of a forward pass per candidate.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.codes.levels import level_set
from lowbit.codes.lookup import replaced
from lowbit.codes.ranges import MinMax, Range
from lowbit.codes.scales import Scales
from lowbit.core.errors import require
from lowbit.core.fields import Bits, Field
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side


@dataclass(frozen=True)
class ScaledLevels:
    """levels: a name of `codes.levels`, or several to choose from, for the "layer" or for each "group".

    scales: how they are stored. range: how they are found, also what an error in each column costs.
    """

    levels: str | tuple[str, ...] = "nf4"
    scales: Scales = Scales()
    range: Range = MinMax()
    choice: Literal["layer", "group"] = "layer"

    def __post_init__(self) -> None:
        names = self._names
        require(1 <= len(names) <= 256, f"ScaledLevels(levels={self.levels!r}): must name 1 to 256 sets of levels.")
        for name in names:
            level_set(name)
        require(self.choice in ("layer", "group"), f'ScaledLevels(choice={self.choice!r}): must be "layer" or "group".')

    @property
    def bits(self) -> int:
        return max(1, (max(len(level_set(name)) for name in self._names) - 1).bit_length())

    def costs(self, problem: LayerProblem) -> Tensor | None:
        return self.range.importance(problem)

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        fields = self.scales.fields(rows, groups, self._turning)
        if len(self._names) > 1:
            fields["level_set"] = Bits((rows, groups) if self.choice == "group" else (1, 1), 8)
        return fields

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        wanted = [one.wanted(*one.extent(groups)).abs() for one in self._sets(groups)]
        unit = self.scales.unit(torch.stack(wanted).amax(0))
        return self._fit(groups, importance, unit, None)

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        unit = side["scale"] if self.scales.outer != "none" else None
        kept = side.get("level_set") if self.choice == "layer" else None
        found = self._fit(groups, importance, unit, kept)
        of_groups = {name: tensor for name, tensor in found.items() if tensor is not unit and tensor is not kept}
        return replaced(side, of_groups, at)

    def of(self, side: Side, at: Tensor) -> Tensor:
        """The tables of the groups `at`, [R, G', 2^bits]."""
        return self.scales.of(side, at)[..., None] * self.unscaled(side, at)

    def unscaled(self, side: Side, at: Tensor) -> Tensor:
        """The sets of the groups `at` before scaling, broadcastable to [R, G', 2^bits]."""
        sets = torch.stack([one.levels for one in self._sets(self.scales.of(side, at))])
        if len(sets) == 1:
            return sets
        chosen = side["level_set"].long()
        return sets[chosen[:, at] if self.choice == "group" else chosen]

    def _fit(self, groups: Tensor, importance: Tensor | None, unit: Tensor | None, kept: Tensor | None) -> Side:
        """The best set, unless `kept`, and scales of groups [R, G, g]."""
        inner = (groups if unit is None else groups / unit[..., None]).flatten(0, 1)
        costs = None if importance is None else importance.flatten(0, 1)
        scales, errors = [], []
        for one in self._sets(groups):
            scale, zero = self.range.fit(inner, costs, one)
            error = (one.nearest(inner, scale[:, None], zero[:, None]) - inner).square()
            errors.append((error if costs is None else error * costs).sum(-1).view(groups.shape[:2]))
            scales.append(scale.view(groups.shape[:2]))
        require(
            all(bool(torch.isfinite(scale).all()) for scale in scales),
            f"Scales({self.scales.kind!r}): weights up to {float(groups.abs().max()):g} need scales that this type "
            'cannot hold. Use "bfloat16" or "float32".',
        )
        if len(scales) == 1:
            return self.scales.side(scales[0], unit, self._turning)
        best = kept if kept is not None else self._best(torch.stack(errors), unit)
        scale = torch.stack(scales).gather(0, best.expand(1, *scales[0].shape))[0]
        return {**self.scales.side(scale, unit, self._turning), "level_set": best}

    def _best(self, errors: Tensor, unit: Tensor | None) -> Tensor:
        """The index of the set with the least error, [R, G] or [1, 1], for errors [sets, R, G] in units of `unit`."""
        if self.choice == "group":
            return errors.argmin(0)
        return (errors if unit is None else errors * unit.square()).sum((1, 2)).argmin().view(1, 1)

    def _sets(self, like: Tensor) -> list["_Set"]:
        """Each set, filled up to 2^bits by repeating its last level, in the type of `like`."""
        sets = [level_set(name) for name in self._names]
        return [_Set(like.new_tensor((*one, *[one[-1]] * (2**self.bits - len(one)))), self.scales) for one in sets]

    @property
    def _turning(self) -> bool:
        """Whether some set reaches further on one side, so that scales may be negative."""
        lopsided = any(max(level_set(name)) != -min(level_set(name)) for name in self._names)
        return lopsided and self.scales.signed

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.levels,) if isinstance(self.levels, str) else self.levels


@dataclass(frozen=True, eq=False)
class _Set:
    """One set of levels [L] as a range sees it (`codes.ranges.Ranged`): no zero point, scales rounded as stored."""

    levels: Tensor
    scales: Scales

    def extent(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        if self._top == self._bottom:
            largest = groups.abs().amax(-1)
            return -largest, largest
        return groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)

    def wanted(self, low: Tensor, high: Tensor) -> Tensor:
        """The smallest scale that clips nothing in [low, high], turned so that the longer side is the longer one."""
        top, bottom = self._top, self._bottom
        turned = torch.zeros_like(low, dtype=torch.bool)
        if self.scales.signed and top != bottom:
            turned = (high >= -low) != (top > bottom)
        above, below = torch.where(turned, -low, high), torch.where(turned, high, -low)
        size = torch.maximum(above / top if top else 0 * above, below / bottom if bottom else 0 * below)
        return torch.where(turned, -size, size)

    def affine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scales.rounded(self.wanted(low, high))
        return scale, torch.zeros_like(scale)

    def nearest(self, w: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        ascending = self.levels.sort()[0]
        return scale * ascending[torch.bucketize(w / scale, (ascending[1:] + ascending[:-1]) / 2)]

    @property
    def _top(self) -> float:
        return max(0.0, float(self.levels.max()))

    @property
    def _bottom(self) -> float:
        return max(0.0, -float(self.levels.min()))
