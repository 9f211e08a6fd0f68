"""Tiles that do not fit a layer: levelled where they may be lower, filled up where they may not.

    Levelled   172 outputs in strips of at most 64: three of 58, not 64 + 64 + 44; 32 outputs: one of 32
    Padded     172 inputs in tiles of 16: eleven, the last one filled up with four columns of zeros

Both change nothing where tiles fit. What is stored for the filling is counted: Levelled stores fewer than one row more
than there are for each row of tiles, Padded fewer than one tile of columns.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowbit.codes.e8p import E8P
from lowbit.codes.trellis import BitshiftTrellis, TailBiting
from lowbit.core.errors import require
from lowbit.core.fields import Field
from lowbit.core.parts import encode_tiles
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side


@dataclass(frozen=True)
class Levelled:
    """The trellis with as many rows of tiles as its own tile asks for, all of one height and none higher.

    A scale for the layer is stored once for each output where the height does not divide them, for it tells how many
    outputs there are.
    """

    trellis: TailBiting

    refit_every = 0

    @property
    def tile(self) -> tuple[int, int]:
        return self.trellis.tile

    def at(self, outputs: int) -> TailBiting:
        """The trellis that serves a layer of so many outputs."""
        return _levelled(self.trellis, outputs)

    def check(self, shape: tuple[int, int]) -> None:
        self.at(shape[0]).check(shape)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return self.at(shape[0]).fields(shape)

    def fit(self, problem: LayerProblem) -> Side:
        stored = self.fields(problem.shape)["scale"]
        return {"scale": self.trellis.fit(problem)["scale"].expand(stored.shape).clone()}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return side

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        return self.at(len(target)).encode(target, side, columns)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.at(len(target)).encode_with_feedback(weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        inner = self.trellis.trellis
        height = codes.shape[-1] * inner.V // inner.tile[1]
        return self.at(height * codes.shape[0]).decode(codes, side, columns)


@functools.lru_cache(maxsize=256)
def _levelled(code: TailBiting, outputs: int) -> TailBiting:
    trellis = code.trellis
    height = -(-outputs // -(-outputs // trellis.tile[0]))
    scales = "row" if outputs % height else trellis.scales
    return replace(code, trellis=replace(trellis, tile=(height, trellis.tile[1]), scales=scales))


@dataclass(frozen=True)
class Padded:
    """A lattice or a trellis, whose scale no filling changes, with tiles of columns of which the last is filled up."""

    code: E8P | BitshiftTrellis | TailBiting | Levelled

    refit_every = 0

    def __post_init__(self) -> None:
        require(
            isinstance(self.code, E8P | BitshiftTrellis | TailBiting | Levelled),
            f"Padded({type(self.code).__name__}): must be E8P or a trellis; other codes fit their side information to "
            "the columns, which filling would shift. Use the code alone.",
        )

    @property
    def tile(self) -> tuple[int, int]:
        return self.code.tile

    def filled(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape [N, K] with whole tiles of columns."""
        width = self.tile[1]
        return shape[0], -(-shape[1] // width) * width

    def check(self, shape: tuple[int, int]) -> None:
        self.code.check(self.filled(shape))

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return self.code.fields(self.filled(shape))

    def fit(self, problem: LayerProblem) -> Side:
        return self.code.fit(problem)

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return side

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        width = target.shape[1]
        filling = self._filling(width)
        codes, values = self.code.encode(pad(target, (0, filling)), side, _continued(columns, filling))
        return codes, values[:, :width]

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return encode_tiles(self, weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        filling = self._filling(len(columns))
        return self.code.decode(codes, side, _continued(columns, filling))[:, : len(columns)]

    def _filling(self, width: int) -> int:
        return -width % self.tile[1]


def _continued(columns: Tensor, filling: int) -> Tensor:
    return torch.cat([columns, columns[-1] + 1 + torch.arange(filling)])
