"""Diagonal scales of inputs and outputs, applied to W and to H alike so that the loss stays the same.

    Rescale         W' = W D,  H' = D^-1 H D^-1,  D = (diag H / diag W^T W)^(1/4)
    ChannelScales   W' = diag(a)^-1 W diag(b)^-1,  H' = diag(b) H diag(b),  a, b root mean squares of rows, columns

QuIP's `Rescale` is the diagonal that makes tr(H) |W|^2, which its error bound grows with, smallest: it evens out what
columns cost and what they weigh. exllamav3's `ChannelScales` make all rows and columns equally large, so one code with
one scale fits them all; chained around a rotation (rows, rotate rows, columns, rotate columns) they give its scheme.
With a `size` they bring the weights to that of a code's values, so that the code needs no scale.

Papers: QuIP (arXiv 2307.13304), section 4.2; exllamav3's repository. Differs: scales are rounded to float16 before
use, so what was optimised is what is loaded; exllamav3 scales W by columns but not H.
Cost: 16 / N bits per weight for column scales, 16 / K for row scales.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Array, Field
from lowbit.core.maps import Diagonal, Identity, LinearMap
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform
from lowbit.transforms.hadamard import check_sides

# Channels this much smaller than the largest (or the mean) are noise or dead; a scale must not magnify them.
_SMALLEST_ENERGY = 1e-8
_SMALLEST_RMS = 1e-3
_SMALLEST_HALF = 2.0**-24


@dataclass(frozen=True)
class Rescale:
    """Balance columns of W against inputs in H."""

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform:
        h = _relative(problem.hessian.diagonal().double())
        w = _relative(problem.weight.double().square().sum(0))
        return self.restore({"rescale": (w / h).pow(0.25).half()}, problem.shape)

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {"rescale": Array((shape[1],), torch.float16)}

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        assert isinstance(fitted.right, Diagonal)
        return {"rescale": fitted.right.scale.half()}

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        return FittedTransform(right=Diagonal(tensors["rescale"].float()))


@dataclass(frozen=True)
class ChannelScales:
    """Divide rows ("left"), columns ("right") or both by their root mean square; columns after rows.

    size: the root mean square that all weights have afterwards, for a code without a scale; None for what it was.
    """

    sides: Literal["both", "left", "right"] = "both"
    size: float | None = None

    def __post_init__(self) -> None:
        check_sides(self, self.sides)
        require(
            self.size is None or self.size > 0,
            f"ChannelScales(size={self.size}): must be above 0. Use 1.0, or None to leave the size as it is.",
        )

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform:
        energy, drawn = problem.weight.double().square(), {}
        for name in self.fields(problem.shape):
            axis = _AXES[name]
            drawn[name] = (_relative_rms(energy, axis) * self._unit(energy)).half().clamp_min(_SMALLEST_HALF)
            require(
                bool(torch.isfinite(drawn[name]).all()),
                f"ChannelScales(size={self.size}): weights are too large for scales in float16. Use size=None.",
            )
            energy = energy / drawn[name].double().square().unsqueeze(1 - axis)
        return self.restore(drawn, problem.shape)

    def _unit(self, energy: Tensor) -> float:
        """What all weights are still to be divided by."""
        rms = float(energy.mean().sqrt())
        return rms / self.size if self.size is not None and rms > 0 else 1.0

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        wanted = {"both": _AXES, "left": ("left_scale",), "right": ("right_scale",)}[self.sides]
        return {name: Array((shape[_AXES[name]],), torch.float16) for name in wanted}

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        maps = {"left_scale": fitted.left.inverse(), "right_scale": fitted.right}
        return {name: one.scale.half() for name, one in maps.items() if isinstance(one, Diagonal)}

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        maps: dict[str, LinearMap] = {name: Diagonal(tensors[name].float()) for name in self.fields(shape)}
        return FittedTransform(maps.get("left_scale", Identity()).inverse(), maps.get("right_scale", Identity()))


_AXES = {"left_scale": 0, "right_scale": 1}


def _relative(energy: Tensor) -> Tensor:
    """energy [d] over its largest, kept off zero; all ones where there is none at all."""
    largest = energy.max()
    return (energy / largest).clamp_min(_SMALLEST_ENERGY) if largest > 0 else torch.ones_like(energy)


def _relative_rms(energy: Tensor, axis: int) -> Tensor:
    """Root mean square along the other axis, over that of the whole; energy: [N, K] squares."""
    mean = energy.mean()
    return (
        (energy.mean(1 - axis) / mean).sqrt().clamp_min(_SMALLEST_RMS) if mean > 0 else torch.ones(energy.shape[axis])
    )
