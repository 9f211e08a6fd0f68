"""Several transforms, one after the other: each is fitted to the problem the ones before it leave."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Field
from lowbit.core.maps import compose
from lowbit.core.parts import Transform
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform


@dataclass(frozen=True)
class Chain:
    """parts[0] first. Stored names must differ between parts; only the last part may give a visiting order."""

    parts: tuple[Transform, ...]

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform:
        done: list[FittedTransform] = []
        for part in self.parts:
            require(
                not done or done[-1].order is None,
                f"Chain: {type(part).__name__} cannot follow a visiting order. Put the order last.",
            )
            done.append(part.fit(problem, rng))
            problem = done[-1].forward(problem)
        return _joined(done)

    def check(self, shape: tuple[int, int]) -> None:
        for part in self.parts:
            part.check(shape)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        merged: dict[str, Field] = {}
        for part in self.parts:
            fields = part.fields(shape)
            require(
                not merged.keys() & fields.keys(), f"Chain: two parts store {sorted(merged.keys() & fields.keys())}."
            )
            merged |= fields
        return merged

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        return {k: v for part, one in zip(self.parts, fitted.parts, strict=True) for k, v in part.tensors(one).items()}

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        return _joined([part.restore(tensors, shape) for part in self.parts])


def _joined(fitted: list[FittedTransform]) -> FittedTransform:
    whole = FittedTransform()
    for one in fitted:
        whole = FittedTransform(compose(one.left, whole.left), compose(one.right, whole.right), one.order)
    return FittedTransform(whole.left, whole.right, whole.order, tuple(fitted))
