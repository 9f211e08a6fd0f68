"""A second, finer codebook for the few columns whose inputs are largest.

    columns with the largest H_jj: one of 2^finer vectors,    all others: one of 2^bits

Vectors of outputs lie in one column, so a column may have a codebook of its own without any vector being cut. The
columns are chosen once; each codebook is found on its own columns, and feedback goes through all of them as they come.

Bits per weight: those of the codebook inside without its c finer columns, and for these finer c / (d K), for their
codebook 16 d 2^finer / (N K), for their places ceil(log2 K) c / (N K).
Paper: VPTQ (arXiv 2409.17066). Differs from its code: vectors of outlier columns are as long as all others, theirs are
shorter; columns stay in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.codes.vector import VectorCodebook
from lowbit.core.errors import require
from lowbit.core.fields import Bits, Field
from lowbit.core.parts import encode_tiles
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side


@dataclass(frozen=True)
class FinerColumns:
    """code: of vectors of outputs, for the usual columns. finer: bits of an index in the others, 1 to 16.

    fraction: of the columns, above 0 and below 1; one column at least.
    """

    code: VectorCodebook
    finer: int = 12
    fraction: float = 0.01

    def __post_init__(self) -> None:
        require(
            self.code.along == "outputs",
            'FinerColumns: a vector must lie in one column. Use VectorCodebook(along="outputs").',
        )
        require(
            0 < self.fraction < 1, f"FinerColumns(fraction={self.fraction}): must be above 0 and below 1. Use 0.01."
        )
        require(1 <= self.finer <= 16, f"FinerColumns(finer={self.finer}): must be 1 to 16.")

    @property
    def tile(self) -> tuple[int, int]:
        return self.code.tile

    @property
    def refit_every(self) -> int:
        return self.code.refit_every

    @property
    def bits(self) -> int:
        return max(self.finer, self.code.bits + self.code.residual_bits)

    def count(self, columns: int) -> int:
        """How many of the columns have the finer codebook."""
        return max(1, round(self.fraction * columns))

    def check(self, shape: tuple[int, int]) -> None:
        self.code.check(shape)
        require(
            self.count(shape[1]) < shape[1],
            f"FinerColumns(fraction={self.fraction}) leaves none of the {shape[1]} inputs of a {list(shape)} layer to "
            "the usual codebook. Use a smaller fraction.",
        )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        (n, k), count = shape, self.count(shape[1])
        finer = self.finer_code.fields((n, count))
        return {
            **self.code.fields(shape),
            "codes": Bits((n // self.tile[0], k - count), self.code.bits + self.code.residual_bits),
            "finer_column": Bits((count,), (k - 1).bit_length()),
            **{f"finer_{name}": field for name, field in finer.items()},
        }

    def to_fields(self, codes: Tensor, side: Side) -> dict[str, Tensor]:
        usual, finer = self._columns(side, codes.shape[1])
        mask = (1 << self.code.bits + self.code.residual_bits) - 1
        return {"codes": codes[:, usual] & mask, "finer_codes": codes[:, finer]}

    def from_fields(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Raises BadRequest where the finer columns are not named in ascending order."""
        check_places(tensors["finer_column"], shape[1])
        usual, finer = self._columns(tensors, shape[1])
        codes = torch.zeros(shape[0] // self.tile[0], shape[1], dtype=torch.int32)
        codes[:, usual], codes[:, finer] = tensors["codes"].int(), tensors["finer_codes"].int()
        return codes

    def fit(self, problem: LayerProblem) -> Side:
        kept = problem.hessian.diagonal().topk(self.count(problem.shape[1])).indices.sort().values
        hessian = problem.hessian.clone()
        hessian[kept], hessian[:, kept] = 0, 0
        own = LayerProblem(problem.weight[:, kept].contiguous(), problem.hessian[kept][:, kept])
        finer = {f"finer_{name}": tensor for name, tensor in self.finer_code.fit(own).items()}
        return {**self.code.fit(replace(problem, hessian=hessian)), "finer_column": kept, **finer}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return self.code.refit(side, target, columns)

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        place, own = self._places(side, columns)
        codes = torch.zeros(len(target) // self.tile[0], len(columns), dtype=torch.int32)
        values = torch.empty_like(target)
        if bool((~own).any()):
            codes[:, ~own], values[:, ~own] = self.code.encode(target[:, ~own], side, columns[~own])
        if bool(own.any()):
            codes[:, own], values[:, own] = self.finer_code.encode(target[:, own], finer_side(side), place[own])
        return codes, values

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return encode_tiles(self, weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        place, own = self._places(side, columns)
        usual = self.code.decode(codes[:, ~own], side, columns[~own])
        values = usual.new_empty(len(usual), len(columns))
        values[:, ~own] = usual
        values[:, own] = self.finer_code.decode(codes[:, own], finer_side(side), place[own])
        return values

    @property
    def finer_code(self) -> VectorCodebook:
        """The code of the finer columns by themselves; its fields are named without "finer_"."""
        return replace(self.code, bits=self.finer, residual_bits=0, group_size="tensor", codebooks="static")

    def _columns(self, side: Side, columns: int) -> tuple[Tensor, Tensor]:
        """The usual columns and the finer ones, each ascending."""
        own = self._places(side, torch.arange(columns))[1]
        return (~own).nonzero()[:, 0], own.nonzero()[:, 0]

    def _places(self, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The place of each column among the finer ones, and whether it is one of them."""
        kept = side["finer_column"].long()
        place = torch.searchsorted(kept, columns).clamp_max(len(kept) - 1)
        return place, kept[place] == columns


def check_places(finer: Tensor, columns: int) -> None:
    """Raise BadRequest unless integers name some of so many columns in ascending order."""
    found = finer.long()
    require(
        bool((found.diff() > 0).all()) and int(found[-1]) < columns,
        f"tensor finer_column does not name {len(found)} of {columns} inputs in ascending order.",
    )


def finer_side(side: Side) -> Side:
    """Side information of the finer codebook, by its own names."""
    return {name.removeprefix("finer_"): tensor for name, tensor in side.items() if name.startswith("finer_")}
