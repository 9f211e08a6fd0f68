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

Observable = Literal[
    "inputs",
    "float_inputs",
    "places",
    "token_counts",
    "attention",
    "mixing",
    "output_curvature",
    "output_gradients",
    "weight_gradients",
]
"""What can be seen of a layer while a batch of S calibration windows of T tokens runs. Float32 unless said otherwise.

Of each token that the layer meets (all S T of them, in order; of an expert those that are sent to it):
    inputs [t, K]           as the quantized prefix produces them
    float_inputs [t, K]     the same tokens in the original model
    places [t, 2]           int64: the token's window in the batch and its position there
Of the windows:
    token_counts [S, T]     int64: how often the token there occurs in all calibration windows
    attention [S, H, T, T]  probabilities, head by query by key, of the block in its original weights
Of a layer that feeds attention, and missing for every other:
    mixing [S, T, T]        where outputs are values: mean over the heads of A^T A, which token is averaged with which
    output_curvature [B, d, d]  float64: what attention minds of each d outputs, summed over tokens
                            (`pipeline.attention`)
Of the original model's loss, in records of their own that hold nothing else:
    output_gradients [t, N]  of the summed loss of next tokens by the layer's outputs
    weight_gradients [S, N, K]  of each window's summed loss of next tokens by the layer's weight
"""

Observed = Mapping[Observable, Tensor]
"""A record of one batch: the observables that a statistic reads, no others."""

GRADIENTS: frozenset[Observable] = frozenset({"output_gradients", "weight_gradients"})
"""Observables that take a backward pass of the original model."""

OF_ONE_LAYER: frozenset[Observable] = GRADIENTS | {"mixing", "output_curvature"}
"""Observables in which layers that share an input differ."""


@runtime_checkable
class Statistic(Protocol):
    """What is W's job? A streaming reduction of what is observed of a layer that ends in a LayerProblem.

    reads: the observables that `update` needs; none at all for a statistic that looks at the weights alone.
    """

    @property
    def reads(self) -> frozenset[Observable]: ...

    def init(self, k: int) -> Any:
        """The empty state for K inputs."""
        ...

    def update(self, state: Any, seen: Observed) -> Any:
        """Add a record; `state` is used up."""
        ...

    def merge(self, a: Any, b: Any) -> Any:
        """The state of having seen the tokens of both; `a` is used up."""
        ...

    def problem(self, state: Any, weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        """The problem for a weight [N, K]; its weight may be another one, the target that is best rounded instead."""
        ...

    def tokens(self, state: Any) -> int:
        """How many tokens the state has seen."""
        ...


@runtime_checkable
class Sensitive(Protocol):
    """A part that may look at the sensitivity of single weights, `LayerProblem.sensitivity`.

    Whoever looks and finds none raises BadRequest; `Recipe.check` sees that a statistic gathers it for somebody.
    """

    @property
    def reads_sensitivity(self) -> bool: ...


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

        weight, target: [N, w]; feedback: [w, w], of which the part strictly above the diagonal tiles is used, tiles
        of `joint_columns(code)` columns.
        """
        ...

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        """The values [rows, w] of a slab's codes; exactly those that `encode` returned."""
        ...


@runtime_checkable
class Shaped(Protocol):
    """A code that takes another form for each shape of a layer."""

    def at(self, shape: tuple[int, int]) -> Code:
        """The code that serves a layer [N, K]; raises BadRequest where none does."""
        ...


def code_at(code: Code | Shaped, shape: tuple[int, int]) -> Code:
    """The code in the form it takes for a layer [N, K]."""
    return code.at(shape) if isinstance(code, Shaped) else code


@runtime_checkable
class Feeding(Protocol):
    """A code whose `encode_with_feedback` feeds errors between the columns inside a tile, too.

    joint_columns: how many columns of a tile still get no feedback from each other.
    """

    @property
    def joint_columns(self) -> int: ...


@runtime_checkable
class Linear(Protocol):
    """A code whose values, with the codes held, are linear in some of its side information.

    linear_in: those fields, in which any values may stand that their types hold.
    """

    @property
    def linear_in(self) -> tuple[str, ...]: ...


def linear_fields(code: object) -> tuple[str, ...]:
    """The fields that a code's values are linear in; none where it does not tell."""
    return code.linear_in if isinstance(code, Linear) else ()


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


def joint_columns(code: Code) -> int:
    """How many neighbouring columns are encoded without feedback from each other."""
    return code.joint_columns if isinstance(code, Feeding) else code.tile[1]


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
