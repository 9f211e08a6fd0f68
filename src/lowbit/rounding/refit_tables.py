"""Tables refitted in the metric that counts: once the codes are chosen, the best levels are a least-squares problem.

With the codes held, the values W_hat(t) of a table look-up are linear in its tables t (levels, centroids, steps of
binary planes), and the loss is a parabola in all of them at once,

    f(t) = tr( G (W_hat(t) - W) H (W_hat(t) - W)^T )

whose bottom a few steps of conjugate gradients approach, none of which raises f. Tables are found for weights as they
were when rounding reached them, and column by column; here all errors count together, as they were left. The new tables
are rounded to their stored type and kept where the loss, computed from the decoded values, is lower: the result is
never worse than that of the rounder inside, and equals its codes decoded with the new tables bit for bit.

Fits any code that says what it is linear in (`core.parts.Linear`). Gradients by tables are those of the code's own
`decode`, so it needs no other.
Cost: 2 N K^2 multiply-adds a step.
Papers: GPTVQ (arXiv 2402.15319), codebook update by 25 steps of Adam; Hestenes and Stiefel, Methods of conjugate
gradients, 1952.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Array
from lowbit.core.parts import Code, Rounder, linear_fields
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded, Side

# Of the squared gradient at the start: below is noise.
_SETTLED = 1e-20

Tables = Mapping[str, Tensor]


@dataclass(frozen=True)
class RefittedTables:
    """rounder: chooses the codes. steps: of conjugate gradients, at least 1."""

    rounder: Rounder
    steps: int = 10

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"RefittedTables(steps={self.steps}): must be at least 1. Use 10.")

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        names = linear_fields(code)
        require(
            bool(names),
            f"RefittedTables needs a code whose values are linear in its tables, such as VectorCodebook or Lookup of "
            f"ClusteredLevels; {type(code).__name__} is none. Use the rounder inside it alone.",
        )
        rounded = self.rounder.round(problem, code)
        decoded = _Decoded(problem, code, rounded.codes, rounded.side)
        tables = _stored(decoded.refitted({name: rounded.side[name] for name in names}, self.steps), code, problem)
        if not all(bool(torch.isfinite(table).all()) for table in tables.values()):
            return rounded
        side = {**rounded.side, **{name: table.to(rounded.side[name]) for name, table in tables.items()}}
        values = code.decode(rounded.codes, side, torch.arange(problem.shape[1])).to(rounded.w_hat)
        if problem.loss(values) >= problem.loss(rounded.w_hat):
            return rounded
        return replace(rounded, side=side, w_hat=values, guarantee=None)


@dataclass(frozen=True, eq=False)
class _Decoded:
    """The values of codes as a linear map of tables."""

    problem: LayerProblem
    code: Code
    codes: Tensor
    side: Side

    def refitted(self, tables: Tables, steps: int) -> dict[str, Tensor]:
        """Tables, float64, after so many steps of conjugate gradients from `tables`, fewer at the bottom."""
        at = {name: table.double() for name, table in tables.items()}
        downhill = self._pulled(self._weighted(self.problem.weight.double() - self._values(at)))
        direction, size = downhill, _dot(downhill, downhill)
        settled = _SETTLED * size
        for _ in range(steps):
            image = self._values(direction)
            curvature = float((image * self._weighted(image)).sum())
            if curvature <= 0 or size <= settled:
                break
            at = _plus(at, size / curvature, direction)
            downhill = _plus(downhill, -size / curvature, self._pulled(self._weighted(image)))
            before, size = size, _dot(downhill, downhill)
            direction = _plus(downhill, size / before, direction)
        return at

    def _values(self, tables: Tables) -> Tensor:
        return self.code.decode(self.codes, {**self.side, **tables}, torch.arange(self.problem.shape[1])).double()

    def _weighted(self, x: Tensor) -> Tensor:
        """G x H for x [N, K]."""
        right, rows = x @ self.problem.hessian.double(), self.problem.row_hessian
        return right if rows is None else rows.double() @ right

    def _pulled(self, x: Tensor) -> dict[str, Tensor]:
        """The transposed map of x [N, K]: how far each entry of the tables moves the values along x."""
        like = {name: self.side[name].double() for name in linear_fields(self.code)}
        with torch.enable_grad():
            entries = {name: torch.zeros_like(table, requires_grad=True) for name, table in like.items()}
            found = torch.autograd.grad(self._values(entries), list(entries.values()), x)
        return dict(zip(entries, found, strict=True))


def _stored(tables: Tables, code: Code, problem: LayerProblem) -> dict[str, Tensor]:
    """Tables rounded to the types they are stored in."""
    fields, stored = code.fields(problem.shape), {}
    for name, table in tables.items():
        field = fields[name]
        assert isinstance(field, Array)
        if not field.dtype.is_floating_point:
            largest = torch.iinfo(field.dtype).max
            table = table.round().clamp(-largest, largest)
        stored[name] = table.to(field.dtype)
    return stored


def _dot(a: Tables, b: Tables) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)


def _plus(a: Tables, factor: float, b: Tables) -> dict[str, Tensor]:
    return {name: a[name] + factor * b[name] for name in a}
