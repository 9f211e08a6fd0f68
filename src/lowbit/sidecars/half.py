"""Corrections are kept in float16: what that cannot hold is refused, and rounding to it never makes a layer worse."""

from typing import TypeVar

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.parts import Correction
from lowbit.core.problem import LayerProblem


def as_half(values: Tensor, part: object) -> Tensor:
    """`values` rounded to float16, as float32; raises BadRequest, naming `part`, where they are too large for it."""
    half = values.to(torch.float16).float()
    require(
        bool(torch.isfinite(half).all()),
        f"{type(part).__name__}: weights up to {float(values.abs().max()):g} do not fit the float16 it keeps them in. "
        "Use a recipe without a side-car for this layer (--override).",
    )
    return half


_Kind = TypeVar("_Kind", bound=Correction)


def no_worse(problem: LayerProblem, w_hat: Tensor, before: _Kind, after: _Kind) -> _Kind:
    """`after`, unless codes that decode to w_hat [N, K] serve better beside `before`."""
    return min((after, before), key=lambda correction: problem.loss(w_hat + correction.dense()))
