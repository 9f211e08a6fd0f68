"""Parts invented for the tests, where lowbit has few or none of a kind yet, so that every protocol is exercised.

They are small and right, not good: what matters is that tiles are wider than one column, that maps act on outputs,
that something is stored beside the codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.linalg import no_signal, one_thread
from lowbit.core.maps import Dense, Diagonal
from lowbit.core.parts import Correction, Observable, Observed, encode_tiles
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform, Outcome, Side


@dataclass(frozen=True)
class FloatMoment:
    """H = mean of x_float x_float^T: a statistic that reads the float model's inputs."""

    @property
    def reads(self) -> frozenset[Observable]:
        return frozenset({"float_inputs"})

    def init(self, k: int) -> tuple[Tensor, int]:
        return torch.zeros(k, k, dtype=torch.float64), 0

    def update(self, state: tuple[Tensor, int], seen: Observed) -> tuple[Tensor, int]:
        x = seen["float_inputs"].double()
        return state[0] + x.T @ x, state[1] + len(x)

    def merge(self, a: tuple[Tensor, int], b: tuple[Tensor, int]) -> tuple[Tensor, int]:
        return a[0] + b[0], a[1] + b[1]

    def problem(self, state: tuple[Tensor, int], weight: Tensor) -> tuple[LayerProblem, tuple[Outcome, ...]]:
        return LayerProblem(weight, state[0] / max(1, state[1])), () if state[1] else (no_signal(),)

    def tokens(self, state: tuple[Tensor, int]) -> int:
        return state[1]


@dataclass(frozen=True)
class Mapped:
    """A transform by a map on either side; its kinds say which maps, and what is stored of them.

    Stores what the maps are made of as float64 "left_map" and "right_map".
    """

    def fit(self, problem: LayerProblem, rng: torch.Generator) -> FittedTransform:
        n, k = problem.shape
        return self._fitted(self._draw(n, rng), self._draw(k, rng))

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def tensors(self, fitted: FittedTransform) -> dict[str, Tensor]:
        return {"left_map": self._data(fitted.left), "right_map": self._data(fitted.right)}

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FittedTransform:
        return self._fitted(tensors["left_map"], tensors["right_map"])


@dataclass(frozen=True)
class Rotated(Mapped):
    """A random orthogonal matrix on both sides."""

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        n, k = shape
        return {"left_map": Array((n, n), torch.float64), "right_map": Array((k, k), torch.float64)}

    def _draw(self, d: int, rng: torch.Generator) -> Tensor:
        with one_thread():  # LAPACK's QR depends on the number of threads
            return torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64))[0].contiguous()

    def _fitted(self, left: Tensor, right: Tensor) -> FittedTransform:
        return FittedTransform(Dense(left, is_orthogonal=True), Dense(right, is_orthogonal=True))

    def _data(self, map: Dense) -> Tensor:
        return map.matrix


@dataclass(frozen=True)
class Sheared(Rotated):
    """A random well-conditioned matrix on both sides, not orthogonal."""

    def _draw(self, d: int, rng: torch.Generator) -> Tensor:
        return torch.eye(d, dtype=torch.float64) + torch.randn(d, d, generator=rng, dtype=torch.float64).triu(1) / d

    def _fitted(self, left: Tensor, right: Tensor) -> FittedTransform:
        return FittedTransform(Dense(left), Dense(right))


@dataclass(frozen=True)
class Scaled(Mapped):
    """Random positive scales on both sides."""

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {"left_map": Array(shape[:1], torch.float64), "right_map": Array(shape[1:], torch.float64)}

    def _draw(self, d: int, rng: torch.Generator) -> Tensor:
        return 0.5 + torch.rand(d, generator=rng, dtype=torch.float64)

    def _fitted(self, left: Tensor, right: Tensor) -> FittedTransform:
        return FittedTransform(Diagonal(left), Diagonal(right))

    def _data(self, map: Diagonal) -> Tensor:
        return map.scale


@dataclass(frozen=True)
class Codebook:
    """Tiles of (rows, columns) weights stored as the index of the nearest of 2^bits random vectors."""

    bits: int = 4
    tile: tuple[int, int] = (1, 2)

    refit_every = 0

    def check(self, shape: tuple[int, int]) -> None:
        for length, width in zip(shape, self.tile, strict=True):
            require(length % width == 0, f"Codebook: tiles of {self.tile} do not fit {shape}.")

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        (n, k), (rows, columns) = shape, self.tile
        return {
            "codes": Bits((n // rows, k // columns), self.bits),
            "codebook": Array((2**self.bits, rows * columns), torch.float32),
        }

    def fit(self, problem: LayerProblem) -> Side:
        generator = torch.Generator().manual_seed(self.bits)
        rows, columns = self.tile
        vectors = torch.randn(2**self.bits, rows * columns, generator=generator)
        return {"codebook": (vectors * problem.weight.std().float()).to(problem.weight.dtype)}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return side

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        (n, w), (rows, width) = target.shape, self.tile
        vectors = target.view(n // rows, rows, w // width, width).transpose(1, 2).reshape(n // rows, w // width, -1)
        codes = (vectors[:, :, None] - side["codebook"]).square().sum(-1).argmin(-1)
        return codes.to(torch.uint8), self.decode(codes, side, columns)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return encode_tiles(self, weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        vectors = side["codebook"][codes.long()]
        tiles = vectors.view(*codes.shape, *self.tile).transpose(1, 2)
        return tiles.reshape(codes.shape[0] * self.tile[0], codes.shape[1] * self.tile[1])


@dataclass(frozen=True)
class Lattice:
    """Multiples of `step`, without end: what the theory's bounds are about."""

    step: float = 0.5

    tile = (1, 1)
    refit_every = 0

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {"codes": Bits(shape, 16)}

    def fit(self, problem: LayerProblem) -> Side:
        return {"like": problem.weight[:0]}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return side

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        codes = ((target / self.step).round() + 2**15).int()
        return codes, self._values(codes, target.dtype)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return encode_tiles(self, weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        return self._values(codes, side["like"].dtype if "like" in side else torch.float32)

    def half_widths(self, side: Side, columns: Tensor) -> Tensor:
        return torch.full((1, 1), self.step / 2)

    def _values(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        return (codes - 2**15).to(dtype) * self.step


@dataclass(frozen=True, eq=False)
class Factors:
    """left [N, r] @ right [r, K], float32."""

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        return self.left @ self.right

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.right.T.to(x.dtype) @ self.left.T.to(x.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"low_rank_left": self.left, "low_rank_right": self.right}


@dataclass(frozen=True)
class LowRank:
    """The error W - w_hat projected on the `rank` output directions that hold most of it. Never raises the loss."""

    rank: int = 1
    turns = 1

    def check(self, shape: tuple[int, int]) -> None:
        require(self.rank <= min(shape), f"LowRank(rank={self.rank}): the layer is {list(shape)}.")

    def start(self, problem: LayerProblem) -> Factors:
        n, k = problem.shape
        return Factors(torch.zeros(n, self.rank), torch.zeros(self.rank, k))

    def rest(self, problem: LayerProblem, correction: Correction) -> LayerProblem:
        return problem

    def fit(self, problem: LayerProblem, correction: Correction, w_hat: Tensor) -> Factors:
        error = (problem.weight - w_hat).double()
        directions = torch.linalg.eigh(error @ problem.hessian.double() @ error.T)[1][:, -self.rank :]
        return Factors(directions.float().contiguous(), (directions.T @ error).float())

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        n, k = shape
        return {
            "low_rank_left": Array((n, self.rank), torch.float32),
            "low_rank_right": Array((self.rank, k), torch.float32),
        }

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Factors:
        return Factors(tensors["low_rank_left"], tensors["low_rank_right"])
