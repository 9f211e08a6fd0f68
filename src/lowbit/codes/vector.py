"""Vector codebooks: d weights at a time are one of 2^b vectors found by k-means on the layer's own weights.

    W_tile = C[i]  or, with a second stage,  C[i] + C'[i'],    tile (1, d) along inputs, (d, 1) along outputs

Along inputs (GPTVQ) a tile spans d columns; along outputs (VPTQ) it lies in one column, all its errors cost the same
and feedback works column by column as in OPTQ. A column's importance is what its rounding error costs: diag(H), or what
of it the columns after it cannot absorb, the d_j of H = A diag(d) A^T. It weighs coordinates when centroids are found.
A tile b of inputs is encoded by the vector that is cheapest jointly, |e A_bb diag(d_b)^(1/2)|^2, as block LDLQ wants.

Bits per weight: (bits + residual_bits) / d + c d groups (2^bits + 2^residual_bits) / (N K), with one codebook per group
of columns, or one for the layer, of numbers of c = 16 bits or of 8 and a float16 scale; each row of tiles is filled up
to a byte.

Papers: GPTVQ (arXiv 2402.15319), VPTQ (arXiv 2409.17066). Differs from GPTVQ: codebooks span all rows, weigh a column
by d_j where its code takes the root, and count what the errors of a tile do together (4 % of the loss at d = 4 on a
small Llama). From VPTQ: normalised weights are a transform, the codebook of outlier columns is `codes.finer`.
Cost: see `lowbit.codes.kmeans`; 2 d 2^b multiply-adds per tile to encode.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.codes.importance import DAMPING, ColumnImportance, check_importance, column_costs
from lowbit.codes.kmeans import k_means
from lowbit.codes.lookup import as_float16, working
from lowbit.core.errors import BadRequest, divisors_near, require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.linalg import unit_upper_factor
from lowbit.core.parts import encode_tiles
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side
from lowbit.kernels.nearest import nearest

_LARGEST_BITS = 16
_LARGEST_INT8 = 127
_DTYPES = {"float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class VectorCodebook:
    """dimension: 1 to 32 weights a tile, lying `along` inputs or outputs.

    bits, residual_bits: of an index, 1 to 16; 0 residual bits for no second stage. group_size: columns that share a
    codebook, or "tensor". importance of a column: "none" (all the same), "diagonal" of H, or "conditional" on the
    columns after it. codebooks: "dynamic" finds a group's anew from the error-compensated weights when a rounder
    reaches it (GPTVQ), "static" keeps those of the original weights. dtype: of the codebooks' numbers.
    """

    dimension: int = 4
    bits: int = 8
    residual_bits: int = 0
    along: Literal["inputs", "outputs"] = "inputs"
    group_size: int | Literal["tensor"] = "tensor"
    importance: ColumnImportance = "conditional"
    codebooks: Literal["dynamic", "static"] = "static"
    dtype: Literal["float16", "int8"] = "float16"

    def __post_init__(self) -> None:
        name = type(self).__name__
        require(1 <= self.dimension <= 32, f"{name}(dimension={self.dimension}): must be 1 to 32.")
        require(1 <= self.bits <= _LARGEST_BITS, f"{name}(bits={self.bits}): must be 1 to {_LARGEST_BITS}.")
        require(
            0 <= self.residual_bits <= _LARGEST_BITS and self.bits + self.residual_bits < 32,
            f"{name}(residual_bits={self.residual_bits}): must be 0 (no second stage) to {_LARGEST_BITS}, "
            "and below 32 together with bits.",
        )
        for field, value, allowed in (
            ("along", self.along, ("inputs", "outputs")),
            ("codebooks", self.codebooks, ("dynamic", "static")),
            ("dtype", self.dtype, ("float16", "int8")),
        ):
            require(value in allowed, f"{name}({field}={value!r}): must be one of {', '.join(allowed)}.")
        check_importance(self, self.importance, ColumnImportance)
        sized = isinstance(self.group_size, int) and self.group_size >= 1 and self.group_size % self.tile[1] == 0
        require(
            sized or self.group_size == "tensor",
            f'{name}(group_size={self.group_size!r}): must be "tensor" or a multiple of {self.tile[1]} columns.',
        )

    @property
    def tile(self) -> tuple[int, int]:
        return (1, self.dimension) if self.along == "inputs" else (self.dimension, 1)

    @property
    def refit_every(self) -> int:
        return self.group_size if isinstance(self.group_size, int) and self.codebooks == "dynamic" else 0

    @property
    def linear_in(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._stages())

    def check(self, shape: tuple[int, int]) -> None:
        n, k = shape
        length, what = (k, "inputs") if self.along == "inputs" else (n, "outputs")
        if length % self.dimension:
            near = max(d for d in range(1, self.dimension) if length % d == 0)
            raise BadRequest(
                f"VectorCodebook(dimension={self.dimension}) does not divide the {length} {what} of a [{n}, {k}] "
                f"layer. Use dimension={near}, or the other direction."
            )
        if isinstance(self.group_size, int) and k % self.group_size:
            raise BadRequest(
                f"VectorCodebook(group_size={self.group_size}) does not divide the {k} inputs of a [{n}, {k}] layer. "
                f'Use {divisors_near(self.group_size, k)}, or "tensor".'
            )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        tiles = (shape[0] // self.tile[0], shape[1] // self.tile[1])
        groups = 1 if self.group_size == "tensor" else shape[1] // self.group_size
        fields: dict[str, Field] = {"codes": Bits(tiles, self.bits + self.residual_bits)}
        for name, bits in self._stages():
            fields[name] = Array((groups, 2**bits, self.dimension), _DTYPES[self.dtype])
            if self.dtype == "int8":
                fields[f"{name}_scale"] = Array((groups,), torch.float16)
        return fields

    def fit(self, problem: LayerProblem) -> Side:
        importance, metric = self._costs(problem)
        groups = [self._fit_group(problem.weight[:, at], importance[at]) for at in self._groups(problem.shape[1])]
        return {
            "importance": importance,
            "metric": metric,
            **{name: torch.stack([books[name] for books in groups]) for name in groups[0]},
        }

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        new = {name: tensor.clone() for name, tensor in side.items()}
        for group in self._groups(len(columns)):
            at = int(columns[group.start]) // self.refit_every
            for name, book in self._fit_group(target[:, group], side["importance"][columns[group]]).items():
                new[name][at] = book
        return new

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self._vectors(target)
        codes = torch.zeros(vectors.shape[:2], dtype=torch.int32)
        for at, tiles in self._tiles_of(columns):
            left, metric, shift = vectors[:, tiles], side["metric"][columns[:: self.tile[1]][tiles] // self.tile[1]], 0
            for name, bits in self._stages():
                book = self.books(side, name, at)
                index = self._nearest(left, book, metric)
                left = left - book[index]
                codes[:, tiles] |= index << shift
                shift += bits
        return codes, self.decode(codes, side, columns)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return encode_tiles(self, weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        dtype = working(side["codebook"]).dtype
        vectors = torch.zeros(*codes.shape, self.dimension, dtype=dtype, device=codes.device)
        for at, tiles in self._tiles_of(columns):
            index = codes[:, tiles].int()
            for name, bits in self._stages():
                vectors[:, tiles] += self.books(side, name, at)[index & (1 << bits) - 1]
                index = index >> bits
        return vectors.flatten(1) if self.along == "inputs" else vectors.transpose(1, 2).flatten(0, 1)

    def books(self, side: Side, name: str, at: int | slice = slice(None)) -> Tensor:
        """The vectors of a stage's codebooks, [2^bits, d] of one of them or [groups, 2^bits, d]; name: of its field."""
        book = working(side[name][at])
        return book * working(side[f"{name}_scale"][at])[..., None, None] if self.dtype == "int8" else book

    def _stages(self) -> list[tuple[str, int]]:
        """Field and index bits of each stage."""
        stages = [("codebook", self.bits)]
        return [*stages, ("residual_codebook", self.residual_bits)] if self.residual_bits else stages

    def _costs(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """What errors cost: importance [K] of single columns, mean 1 and positive, and metric, see `_metric`."""
        dtype, cost = problem.weight.dtype, column_costs(problem, self.importance)
        unit_upper = torch.eye(len(cost), dtype=torch.float64)
        if self.importance == "conditional" and self.tile[1] > 1:
            unit_upper = unit_upper_factor(problem.hessian, DAMPING).unit_upper
        return cost.to(dtype), self._metric(unit_upper, cost).to(dtype)

    def _metric(self, unit_upper: Tensor, cost: Tensor) -> Tensor:
        """M = A_bb diag(d_b)^(1/2) of each column tile, where an error e costs |e M|^2: [K / w, w, w] for w columns."""
        width = self.tile[1]
        blocks = unit_upper.view(len(cost) // width, width, -1, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return blocks * cost.sqrt().view(-1, 1, width)

    def _nearest(self, tiles: Tensor, book: Tensor, metric: Tensor) -> Tensor:
        """Index [R, T] of the cheapest codebook vector for tiles [R, T, d]; metric as above."""
        ones = tiles.new_ones(1, self.dimension)
        if self.along == "outputs":
            return nearest(tiles.flatten(0, 1), ones.expand(tiles[..., 0].numel(), -1), book)[0].view(tiles.shape[:2])
        ones = ones.expand(len(tiles), -1)
        return torch.stack([nearest(tiles[:, t] @ m, ones, book @ m)[0] for t, m in enumerate(metric)], 1)

    def _groups(self, columns: int) -> Iterator[slice]:
        step = columns if self.group_size == "tensor" else self.group_size
        return (slice(start, start + step) for start in range(0, columns, step))

    def _fit_group(self, weight: Tensor, importance: Tensor) -> dict[str, Tensor]:
        """The codebook of each stage, [2^bits, d], as it is stored, and its scale, in the weights' type."""
        left, weights = (self._vectors(one).flatten(0, 1) for one in (weight, importance.expand_as(weight)))
        books: dict[str, Tensor] = {}
        for name, bits in self._stages():
            book = k_means(left, weights, 2**bits)
            if self.dtype == "int8":
                books[f"{name}_scale"] = as_float16(self, book.abs().amax() / _LARGEST_INT8).clamp_min(2.0**-24)
                books[name] = (book / books[f"{name}_scale"]).round().clamp(-_LARGEST_INT8, _LARGEST_INT8)
                book = books[name] * books[f"{name}_scale"]
            else:
                books[name] = book = as_float16(self, book)
            left = left - book[nearest(left, weights, book)[0]]
        return books

    def _vectors(self, weight: Tensor) -> Tensor:
        """The tiles of a weight [N, w] as [row tiles, column tiles, d]."""
        n, w = weight.shape
        if self.along == "inputs":
            return weight.reshape(n, -1, self.dimension)
        return weight.reshape(-1, self.dimension, w).transpose(1, 2)

    def _tiles_of(self, columns: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each codebook that a slab's columns use, and the column tiles that use it."""
        first = columns[:: self.tile[1]]
        group = first // self.group_size if isinstance(self.group_size, int) else torch.zeros_like(first)
        return ((at, torch.nonzero(group == at).flatten()) for at in set(group.tolist()))
