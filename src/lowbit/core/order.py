"""Visiting columns in another order than they are stored in.

A code whose side information is fixed before rounding starts does not care in which order its columns are rounded, and
one that estimates it group by group only wants each group's columns together. `visit` permutes the problem, lends the
rounder the same code under the permuted numbering, and puts the answer back in place: OPTQ's "static groups" with
act-order, at no cost in storage and without a flag in any rounder.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.core.cells import half_widths
from lowbit.core.errors import require
from lowbit.core.fields import Field
from lowbit.core.maps import Permutation
from lowbit.core.parts import Code, Rounder, linear_fields
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform, Rounded, Side


@dataclass(frozen=True, eq=False)
class _Visited:
    """`code` seen by a rounder that numbers the columns in visiting order."""

    code: Code
    order: Permutation

    @property
    def refit_every(self) -> int:
        return self.code.refit_every

    @property
    def tile(self) -> tuple[int, int]:
        return self.code.tile

    @property
    def linear_in(self) -> tuple[str, ...]:
        return linear_fields(self.code)

    def check(self, shape: tuple[int, int]) -> None:
        self.code.check(shape)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return self.code.fields(shape)

    def fit(self, problem: LayerProblem) -> Side:
        return self.code.fit(FittedTransform(right=self.order.inverse()).forward(problem))

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return self.code.refit(side, target, self.order.index[columns])

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        return self.code.encode(target, side, self.order.index[columns])

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.code.encode_with_feedback(weight, target, feedback, side, self.order.index[columns])

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        return self.code.decode(codes, side, self.order.index[columns])

    def half_widths(self, side: Side, columns: Tensor) -> Tensor | None:
        return half_widths(self.code, side, self.order.index[columns])


def visit(rounder: Rounder, problem: LayerProblem, code: Code, order: Permutation) -> Rounded:
    """Round `problem` visiting its columns in `order`; codes and values come back in the columns' own places."""
    require(
        code.tile[1] == 1,
        f"{type(code).__name__} encodes tiles of {code.tile[1]} columns, which cannot be visited one by one. "
        "Use ActOrder, which stores the permuted layout.",
    )
    require(
        _keeps_groups(order, code.refit_every),
        f"{type(code).__name__} re-estimates the scales of {code.refit_every} columns when they are reached, and the "
        'order does not reach them together. Use GroupOrder, scales="static", or ActOrder.',
    )
    rounded = rounder.round(FittedTransform(right=order).forward(problem), _Visited(code, order))
    back = torch.argsort(order.index)
    return replace(rounded, codes=rounded.codes[:, back], w_hat=rounded.w_hat[:, back].contiguous())


def _keeps_groups(order: Permutation, width: int) -> bool:
    """Whether every `width` columns visited in a row are one group; True where nothing is estimated on the way."""
    if width == 0:
        return True
    groups = (order.index // width).view(-1, width)
    return bool((groups == groups[:, :1]).all())
