"""Tiles made to fit a layer.

    Levelled   172 outputs in tiles of 64 x 4: 58 x 4, not 64 + 64 + 44 rows; 32 outputs in 256 x 1: 32 x 8
    Padded     172 inputs in tiles of 16 columns: eleven, the last one filled up with four columns of zeros

Both change nothing where tiles fit. What is stored for the filling is counted: Levelled stores fewer than V rows more
than there are for each row of tiles, Padded fewer than one tile of columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowbit.codes.e8p import E8P
from lowbit.codes.trellis import BitshiftTrellis, TailBiting
from lowbit.core.errors import require
from lowbit.core.fields import Field
from lowbit.core.parts import Code, joint_columns
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side


@dataclass(frozen=True)
class Levelled:
    """The trellis with as many rows of tiles as its own tile asks for, all of one height and none higher.

    Where tiles get lower they get wider, so that they hold about as many weights: short sequences encode badly. Inputs
    are filled up to whole tiles. A scale for the layer is stored once for each output where the height does not divide
    them, for it tells how many outputs there are.
    """

    trellis: TailBiting

    def at(self, shape: tuple[int, int]) -> Code:
        (n, k), whole = shape, self.trellis.trellis
        rows, columns = whole.tile
        height = -(-n // -(-n // rows))
        height += -height % whole.V
        width = min(k, max(columns, round(rows * columns / height)))
        scales = "row" if n % height else whole.scales
        fitted = self.trellis.with_tile((height, width), scales)
        return Padded(fitted) if k % width else fitted


@dataclass(frozen=True)
class Padded:
    """A lattice or a trellis, whose scale no filling changes, with tiles of columns of which the last is filled up."""

    code: E8P | BitshiftTrellis | TailBiting

    refit_every = 0

    def __post_init__(self) -> None:
        require(
            isinstance(self.code, E8P | BitshiftTrellis | TailBiting),
            f"Padded({type(self.code).__name__}): must be E8P or a trellis; other codes fit their side information to "
            "the columns, which filling would shift. Use the code alone.",
        )

    @property
    def tile(self) -> tuple[int, int]:
        return self.code.tile

    @property
    def joint_columns(self) -> int:
        return joint_columns(self.code)

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
        width = target.shape[1]
        filling = self._filling(width)
        weight, target = pad(weight, (0, filling)), pad(target, (0, filling))
        codes, values = self.code.encode_with_feedback(
            weight, target, pad(feedback, (0, filling, 0, filling)), side, _continued(columns, filling)
        )
        return codes, values[:, :width]

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        filling = self._filling(len(columns))
        return self.code.decode(codes, side, _continued(columns, filling))[:, : len(columns)]

    def _filling(self, width: int) -> int:
        return -width % self.tile[1]


def _continued(columns: Tensor, filling: int) -> Tensor:
    return torch.cat([columns, columns[-1] + 1 + torch.arange(filling)])
