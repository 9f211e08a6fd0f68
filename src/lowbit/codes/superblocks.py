"""Super-blocks: the steps and minima of groups are small whole numbers, in units that a few neighbouring groups share.

    value = u k q - v l              q, k, l from 0 on; units u, v of the super-block, k, l of the group
    value = u k (q - 2^(b-1))        symmetric: k of either sign, no minimum

A group on its own stores 16 bits a number; here it is 4 to 8. `codes.kquant` has those that llama.cpp reads.

A group's step and minimum are searched among fractions of its range, each improved by least squares; units are the
least that reach the largest step and minimum. As rounding reaches a group, its k and l are found anew and the units
stay. Taking turns between units and groups gained rounding to nearest 1 to 3 % of its loss, and feedback nothing.

Bits per weight: b + c / g + 16 / (g n), twice the latter two with minima; g columns a group, n groups a super-block, k
of c bits. Cost: 4 `steps` roundings of the layer to fit, 2 `steps` to refit; twice as many where symmetric.
Source: the block types of llama.cpp (ggml), read off its format. Differs from its quantizer: weighs by what an error in
a column costs, and leaves the choice of codes to the rounder.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.codes.importance import Importance, Weighed, check_importance
from lowbit.codes.lookup import as_float16, replaced, working
from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.records import Side

_LEAST_UNIT = 2.0**-24


@dataclass(frozen=True)
class SuperBlocks(Weighed):
    """bits: 1 to 8, of a code. scale_bits: 1 to 8, of k and l. count: groups of a super-block.

    symmetric: see above. importance: what an error in a column costs (`codes.importance`). steps: fractions of the
    range tried, at least 1, down to `smallest` of it.
    """

    bits: int = 4
    scale_bits: int = 6
    count: int = 8
    symmetric: bool = False
    importance: Importance = "conditional"
    smallest: float = 0.5
    steps: int = 20

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 8, f"SuperBlocks(bits={self.bits!r}): must be 1 to 8.")
        require(1 <= self.scale_bits <= 8, f"SuperBlocks(scale_bits={self.scale_bits!r}): must be 1 to 8.")
        require(
            not (self.symmetric and 1 in (self.bits, self.scale_bits)),
            "SuperBlocks(symmetric=True): needs 2 bits at least, of codes and of scales.",
        )
        require(self.count >= 1, f"SuperBlocks(count={self.count}): must be at least 1. Use 8.")
        require(0 < self.smallest <= 1, f"SuperBlocks(smallest={self.smallest}): must be in (0, 1]. Use 0.5.")
        require(self.steps >= 1, f"SuperBlocks(steps={self.steps}): must be at least 1. Use 20.")
        check_importance(self, self.importance)

    @property
    def zero(self) -> int:
        """The code of the value 0 where symmetric, else 0."""
        return 1 << (self.bits - 1) if self.symmetric else 0

    @property
    def step_zero(self) -> int:
        """What is stored for k = 0."""
        return 1 << (self.scale_bits - 1) if self.symmetric else 0

    def fields(self, rows: int, groups: int) -> dict[str, Field]:
        require(
            groups % self.count == 0,
            f"SuperBlocks(count={self.count}): {groups} groups a row are no whole super-blocks. Use a count that "
            "divides them, or KQuant, which falls back on smaller blocks.",
        )
        fields: dict[str, Field] = {
            "step": Bits((rows, groups), self.scale_bits),
            "step_unit": Array((rows, groups // self.count), torch.float16),
        }
        if not self.symmetric:
            fields["minimum"] = Bits((rows, groups), self.scale_bits)
            fields["minimum_unit"] = Array((rows, groups // self.count), torch.float16)
        return fields

    def fit(self, groups: Tensor, importance: Tensor | None) -> Side:
        costs = torch.ones_like(groups) if importance is None else importance
        units = self._reaching(*self._searched(groups, costs, None))
        spread = {name: unit.repeat_interleave(self.count, 1) for name, unit in units.items()}
        return {**units, **self._whole(*self._searched(groups, costs, spread), spread)}

    def refit(self, side: Side, groups: Tensor, importance: Tensor | None, at: Tensor) -> Side:
        costs = torch.ones_like(groups) if importance is None else importance
        units = {name: side[name][:, at // self.count] for name in self._units}
        return replaced(side, self._whole(*self._searched(groups, costs, units), units), at)

    def of(self, side: Side, at: Tensor) -> Tensor:
        step, minimum = self.steps_of(side, at)
        codes = torch.arange(2**self.bits, dtype=step.dtype) - self.zero
        return step[..., None] * codes if self.symmetric else step[..., None] * codes - minimum[..., None]

    def steps_of(self, side: Side, at: Tensor) -> tuple[Tensor, Tensor]:
        """The steps and minima of the groups `at`, both [R, G']."""
        units = {name: working(side[name])[:, at // self.count] for name in self._units}
        return self._real({name: working(side[name])[:, at] for name in self._wholes}, units)

    @property
    def _wholes(self) -> tuple[str, ...]:
        return ("step",) if self.symmetric else ("step", "minimum")

    @property
    def _units(self) -> tuple[str, ...]:
        return tuple(f"{name}_unit" for name in self._wholes)

    def _reaching(self, step: Tensor, minimum: Tensor) -> Side:
        """The least units [R, B] that reach these steps and minima [R, G]."""
        top, units = 2**self.scale_bits - 1 - self.step_zero, {}
        for name, real in zip(self._units, (step, minimum), strict=False):
            largest = real.abs().view(len(real), -1, self.count).amax(-1)
            units[name] = as_float16(self, largest / top).clamp_min(_LEAST_UNIT)
        return units

    def _searched(self, groups: Tensor, costs: Tensor, units: Side | None) -> tuple[Tensor, Tensor]:
        """The best step and minimum [R, G] of groups [R, G, g]; whole numbers of `units` [R, G], if given."""
        best = least = None
        minima = torch.full_like(groups, 0 if self.symmetric else -1)
        for step, minimum in self._starts(groups):
            for _ in range(2):
                if units is not None:
                    step, minimum = self._real(self._whole(step, minimum, units), units)
                codes = self._codes(groups, step, minimum)
                cost = _cost(groups, costs, codes, step, minimum)
                if best is None or least is None:
                    best, least = (step, minimum), cost
                better = cost < least
                best = torch.where(better, step, best[0]), torch.where(better, minimum, best[1])
                least = torch.minimum(cost, least)
                step, minimum = _least_squares(costs, groups, codes, minima)
        assert best is not None
        return best

    def _starts(self, groups: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Steps and minima [R, G] that fractions of the groups' ranges ask for."""
        low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
        extreme = torch.where(high > -low, high, low)
        for fraction in torch.linspace(1, self.smallest, self.steps).tolist():
            if self.symmetric:  # the longer side of a group on the longer side of the codes, then the other way round
                yield -fraction / self.zero * extreme, torch.zeros_like(extreme)
                yield fraction / (self.zero - 1) * extreme, torch.zeros_like(extreme)
            else:
                yield fraction / (2**self.bits - 1) * (high - low), -fraction * low

    def _codes(self, groups: Tensor, step: Tensor, minimum: Tensor) -> Tensor:
        """The codes nearest to groups [R, G, g], less that of the value 0 where symmetric."""
        divisor = torch.where(step == 0, 1, step)[..., None]
        return ((groups + minimum[..., None]) / divisor).round().clamp(-self.zero, 2**self.bits - 1 - self.zero)

    def _whole(self, step: Tensor, minimum: Tensor, units: Side) -> Side:
        """Steps and minima [R, G] as they are stored in units [R, G]."""
        top = 2**self.scale_bits - 1
        found = zip(self._wholes, self._units, (step, minimum), strict=False)
        return {name: ((real / units[unit]).round() + self.step_zero).clamp(0, top) for name, unit, real in found}

    def _real(self, whole: Side, units: Side) -> tuple[Tensor, Tensor]:
        """Steps and minima from what is stored of them."""
        step = units["step_unit"] * (whole["step"] - self.step_zero)
        return step, torch.zeros_like(step) if self.symmetric else units["minimum_unit"] * whole["minimum"]


def _cost(groups: Tensor, costs: Tensor, codes: Tensor, step: Tensor, minimum: Tensor) -> Tensor:
    """Weighted squared errors of groups, [R, G]."""
    return (costs * (step[..., None] * codes - minimum[..., None] - groups).square()).sum(-1)


def _least_squares(costs: Tensor, target: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x and y >= 0 that minimise sum costs (x a + y b - target)^2 over the last axis."""
    aa, ab, bb = ((costs * one * other).sum(-1) for one, other in ((a, a), (a, b), (b, b)))
    at, bt = ((costs * one * target).sum(-1) for one in (a, b))
    determinant = aa * bb - ab.square()
    both = determinant > 1e-6 * aa * bb
    x, y = (top / torch.where(both, determinant, 1) for top in (at * bb - bt * ab, bt * aa - at * ab))
    both &= y >= 0
    return torch.where(both, x, at / torch.where(aa > 0, aa, 1)), torch.where(both, y, 0)
