"""The protocols of the parts. A method is a choice of parts; a new method is usually one new part.

Parts are frozen dataclasses of plain values (numbers, strings, other parts): they compare, print and serialise.
Their constructors only check. Symbols: N outputs, K inputs, T tokens.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lowbit.core.fields import Field
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform, Outcome, Rounded, Side

Reads = Literal["nothing", "quantized", "both"]


@runtime_checkable
class Statistic(Protocol):
    """What is W's job? A streaming reduction of a layer's inputs that ends in a LayerProblem.

    reads: which inputs `update` needs: none at all, those the quantized prefix produces, or the float ones too.
    """

    @property
    def reads(self) -> Reads: ...

    def init(self, k: int) -> Any:
        """The empty state for K inputs."""
        ...

    def update(self, state: Any, x: Tensor, x_float: Tensor | None) -> Any:
        """Add tokens x [T, K] (and x_float [T, K], the same tokens in the float model); `state` is used up."""
        ...

    def merge(self, a: Any, b: Any) -> Any:
        """The state of having seen the tokens of both."""
        ...

    def problem(self, state: Any, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        """The problem for a weight [N, K]."""
        ...

    def tokens(self, state: Any) -> int:
        """How many tokens the state has seen."""
        ...


@runtime_checkable
class Transform(Protocol):
    """In which coordinates is W rounded? Ordering, scaling and rotating are all of this kind."""

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform: ...

    def check(self, shape: tuple[int, int]) -> None:
        """Raise BadRequest where a layer [N, K] cannot be transformed, naming what would fit."""
        ...

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        """What is stored for a layer [N, K]."""
        ...

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        """The stored tensors of a fitted transform, by field name."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        """The fitted transform from its stored tensors; visiting orders are not restored."""
        ...


@runtime_checkable
class Code(Protocol):
    """Which values can be stored, and how are they reached?

    tile: (rows, columns) encoded jointly. refit_every: columns after which the rounder calls `refit` with the
    error-compensated weights of the next group, 0 for never. `columns` is always the int64 index of the columns of W
    that a slab holds; slabs are whole tiles.
    """

    @property
    def tile(self) -> tuple[int, int]: ...

    @property
    def refit_every(self) -> int: ...

    def check(self, shape: tuple[int, int]) -> None:
        """Raise BadRequest where a layer [N, K] cannot be held, naming what would fit."""
        ...

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        """What is stored for a layer [N, K]: the field "codes" and the side information."""
        ...

    def fit(self, problem: LayerProblem) -> Side: ...

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        """Side information with the groups of `columns` estimated anew from `target` [N, len(columns)]."""
        ...

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and values [N, w] nearest to target [N, w]."""
        ...

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Round a slab tile by tile, each tile aiming at target + (weight - values) @ feedback.

        weight, target: [N, w]; feedback: [w, w], of which the part strictly above the diagonal tiles is used.
        """
        ...

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        """The values [rows, w] of a slab's codes; exactly those that `encode` returned."""
        ...


@runtime_checkable
class Rounder(Protocol):
    """Which of the storable values is chosen?"""

    def round(self, problem: LayerProblem, code: Code) -> Rounded: ...


class Correction(Protocol):
    """Something kept beside the codes and added to their product."""

    def dense(self) -> Tensor:
        """The correction as a [N, K] matrix in the layer's own coordinates, float32."""
        ...

    def apply(self, x: Tensor) -> Tensor:
        """x [T, K] times the transposed correction: [T, N] in x's type."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors, by field name."""
        ...


@runtime_checkable
class SideCar(Protocol):
    """What is kept apart from the codes?

    The codes answer for `rest(problem, correction)`, the correction for what they leave; the two take turns:

        correction = start(problem)
        repeat `turns` times:  w_hat = rounded rest(problem, correction);  correction = fit(problem, correction, w_hat)

    and the best turn is kept. All in the layer's own coordinates, before the transform.
    """

    @property
    def turns(self) -> int:
        """How often rounding and fitting take turns, at least 1."""
        ...

    def check(self, shape: tuple[int, int]) -> None:
        """Raise BadRequest where a layer [N, K] cannot have it, naming what would fit."""
        ...

    def start(self, problem: LayerProblem) -> Correction:
        """What is kept apart before anything is rounded."""
        ...

    def rest(self, problem: LayerProblem, correction: Correction) -> LayerProblem:
        """The problem [N, K] left for the codes beside `correction`."""
        ...

    def fit(self, problem: LayerProblem, correction: Correction, w_hat: Tensor) -> Correction:
        """The correction for codes that decode to w_hat [N, K]; `correction` is what they were rounded beside."""
        ...

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        """What is stored for a layer [N, K]."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Correction:
        """The correction from its stored tensors."""
        ...


def encode_tiles(
    code: Code, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """`Code.encode_with_feedback` for any code: encode a tile of columns, feed its error to the rest, go on."""
    width, wanted = code.tile[1], target.clone()
    codes, values = [], torch.empty_like(target)
    for start in range(0, target.shape[1], width):
        tile = slice(start, start + width)
        tile_codes, values[:, tile] = code.encode(wanted[:, tile], side, columns[tile])
        error = weight[:, tile] - values[:, tile]
        wanted[:, start + width :] += error @ feedback[tile, start + width :]
        codes.append(tile_codes)
    return torch.cat(codes, dim=1), values
