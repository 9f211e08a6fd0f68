"""Low-rank corrections: two thin factors for what is regular in the error of the codes.

The best correction of rank r for the error E = W - Q is its projection on the r output directions that hold most of it,

    A B = U U^T E,      U [N, r]: the leading eigenvectors of E M E^T

where the metric M says which errors count: M = I (the SVD of E, LoRC), M = diag(H), or M = H, the loss itself. This is
SVD(E M^1/2) M^-1/2 without a square root or an inverse of M. LQ-LoRA weighs rows, too: with R and M the diagonals of
the rows' and the columns' mean sensitivity F_ij ("fisher"), the best correction for tr(R E M E^T) is that of R^1/2 E,
its rows scaled back. With more turns codes and factors alternate, and the best turn is kept.

The factors may also come first, for E = W: the codes then round what is left of W, whose range is smaller where W has
large regular components. On the layers of two small models (3 bits, ranks 2 and 8, one to eight turns, to nearest or
with feedback) the loss was 7 to 26 % lower for it, so it is the default; on white weights it is higher.

Bits: 16 r (N + K) / (N K) in float16; 8 r (N + K + 4) / (N K) in int8, with a float16 scale for each of the r columns
of A and rows of B.
Cost: a few products of E and M with 2 r + 32 vectors a step; at run time r (N + K) multiply-adds a token.
Papers: ZeroQuant-V2 (arXiv 2303.08302), codes first; LQ-LoRA (arXiv 2311.12023), factors first. Differs: factors are
replaced only where that lowers the loss; all turns are taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Array, Field
from lowbit.core.linalg import one_thread
from lowbit.core.parts import Correction
from lowbit.core.problem import LayerProblem
from lowbit.sidecars.half import as_half, no_worse

Metric = Literal["identity", "diagonal", "hessian", "fisher"]

# Subspace iteration: steps, and vectors beyond twice the rank. Layers no larger than that are solved exactly.
_STEPS = 8
_SPARE = 32
_LARGEST_INT8 = 127
# Of a row over the mean of all rows: rows that the loss does not mind are scaled back from there.
_LEAST_SENSITIVITY = 1e-6


@dataclass(frozen=True, eq=False)
class Factors:
    """left: [N, r], right: [r, K], float32 products of what is stored. stored: by field name, as `LowRank.fields`."""

    left: Tensor
    right: Tensor
    stored: Mapping[str, Tensor]

    def dense(self) -> Tensor:
        return self.left @ self.right

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.right.T.to(x.dtype) @ self.left.T.to(x.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.stored)


@dataclass(frozen=True)
class LowRank:
    """rank: r, 1 to the smaller side of the layer. metric: which errors count. dtype: of the factors as stored.

    turns: >= 1 of rounding and factoring. first: what is left for the other: "factors" of W, or "codes".
    """

    rank: int = 8
    metric: Metric = "hessian"
    dtype: Literal["float16", "int8"] = "float16"
    turns: int = 1
    first: Literal["factors", "codes"] = "factors"

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"LowRank(rank={self.rank}): must be at least 1. Use 8.")
        require(self.turns >= 1, f"LowRank(turns={self.turns}): must be at least 1.")
        for name, value, known in (
            ("metric", self.metric, get_args(Metric)),
            ("dtype", self.dtype, ("float16", "int8")),
            ("first", self.first, ("factors", "codes")),
        ):
            require(value in known, f"LowRank({name}={value!r}): must be one of {', '.join(known)}.")

    @property
    def reads_sensitivity(self) -> bool:
        return self.metric == "fisher"

    def check(self, shape: tuple[int, int]) -> None:
        require(
            self.rank <= min(shape),
            f"LowRank(rank={self.rank}) is above the smaller side of a {list(shape)} layer. Use at most {min(shape)}.",
        )

    def start(self, problem: LayerProblem) -> Factors:
        n, k = problem.shape
        none = self._factors(torch.zeros(n, self.rank), torch.zeros(self.rank, k))
        return none if self.first == "codes" else self.fit(problem, none, torch.zeros_like(problem.weight))

    def rest(self, problem: LayerProblem, correction: Correction) -> LayerProblem:
        return replace(problem, weight=problem.weight - correction.dense())

    def fit(self, problem: LayerProblem, correction: Correction, w_hat: Tensor) -> Factors:
        assert isinstance(correction, Factors)
        error = (problem.weight - w_hat).double()
        metric, rows = self._metrics(problem)
        directions = _leading(rows * error, metric, self.rank)
        right = directions.T @ (rows * error)
        directions = directions / rows
        # The square root of each component's size on either side keeps both away from float16's limits.
        size = right.norm(dim=1).clamp_min(torch.finfo(right.dtype).tiny).sqrt()
        return no_worse(problem, w_hat, correction, self._factors(directions * size, right / size[:, None]))

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        n, k = shape
        dtype = torch.float16 if self.dtype == "float16" else torch.int8
        fields: dict[str, Field] = {
            "low_rank_left": Array((n, self.rank), dtype),
            "low_rank_right": Array((self.rank, k), dtype),
        }
        if self.dtype == "int8":
            fields["low_rank_left_scale"] = Array((self.rank,), torch.float16)
            fields["low_rank_right_scale"] = Array((self.rank,), torch.float16)
        return fields

    def restore(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Factors:
        stored = {name: tensors[name] for name in self.fields(shape)}
        left, right = stored["low_rank_left"].float(), stored["low_rank_right"].float()
        if self.dtype == "int8":
            left = left * stored["low_rank_left_scale"].float()
            right = right * stored["low_rank_right_scale"].float()[:, None]
        return Factors(left, right, stored)

    def _metrics(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """M [K, K], and R^1/2 [N, 1] over its mean square."""
        hessian, rows = problem.hessian.double(), torch.ones(problem.shape[0], 1, dtype=torch.float64)
        match self.metric:
            case "identity":
                return torch.eye(len(hessian), dtype=hessian.dtype), rows
            case "diagonal":
                return hessian.diagonal().diag(), rows
            case "hessian":
                return hessian, rows
        sensitivity = problem.sensitivity_for(self).double()
        if bool(sensitivity.any()):
            rows = (sensitivity.mean(1, keepdim=True) / sensitivity.mean()).clamp_min(_LEAST_SENSITIVITY).sqrt()
        return sensitivity.mean(0).diag(), rows

    def _factors(self, left: Tensor, right: Tensor) -> Factors:
        """Factors rounded to what is stored."""
        n, k = len(left), right.shape[1]
        if self.dtype == "float16":
            stored = {"low_rank_left": as_half(left, self), "low_rank_right": as_half(right, self)}
        else:
            left, left_scale = self._int8(left.T)
            stored = {"low_rank_left": left.T.contiguous(), "low_rank_left_scale": left_scale}
            stored["low_rank_right"], stored["low_rank_right_scale"] = self._int8(right)
        return self.restore(stored, (n, k))

    def _int8(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [r, d] as integers, int8, and a scale for each, [r]."""
        largest = vectors.abs().amax(1)
        # The smallest normal float16, for vectors of zeros: a scale that is not positive is refused by readers.
        scale = as_half(largest / _LARGEST_INT8, self).clamp_min(2.0**-14)
        codes = (vectors / scale[:, None]).round().clamp(-_LARGEST_INT8, _LARGEST_INT8)
        return codes.to(torch.int8), scale


def _leading(error: Tensor, metric: Tensor, rank: int) -> Tensor:
    """Orthonormal leading eigenvectors of error @ metric @ error^T, [N, rank], by subspace iteration."""
    generator = torch.Generator().manual_seed(0)
    width = min(len(error), 2 * rank + _SPARE)
    basis = torch.randn(len(error), width, generator=generator, dtype=error.dtype)
    with one_thread():  # LAPACK's results depend on the number of threads
        basis = torch.linalg.qr(basis)[0]
    for _ in range(_STEPS):
        image = error @ (metric @ (error.T @ basis))
        with one_thread():
            basis = torch.linalg.qr(image)[0]
    reduced = basis.T @ error
    with one_thread():
        _, vectors = torch.linalg.eigh(reduced @ metric @ reduced.T)
    return basis @ vectors[:, -rank:].flip(1)
