"""How good can it get? The least loss that any code of so many bits per weight can have.

Take the rows of W as independent Gaussians, row i of variance s_i, and S = diag(s). In the eigenbasis of H and of
S^(1/2) G S^(1/2) (G = I where there is no row Hessian) the loss is a sum of N K independent Gaussian components, each
of variance g_i h_j, the products of both spectra, with plain squared error. Shannon's answer for them is reverse
water-filling: one level t, above which components are coded and below which they are not worth a bit,

    limit = sum_ij min(t, g_i h_j),    where t solves  sum_ij max(0, 1/2 log2(g_i h_j / t)) = R N K.

R counts everything stored, side information too: that is what a better scheme could have spent. Where no component
lies below the level this is N K det(S)^(1/N) det(H)^(1/K) 2^(-2 R); for a singular H that is zero and water-filling
is not. H is taken without damping, as the loss is.

No code gets below the limit in expectation over such weights. A single layer may: its weights are what they are, and
weights with heavier tails than Gaussian ones, or smaller where H is large, leave more to be gained. A covariance of
the columns of W could be had for K^2 numbers, but estimated from N rows it finds structure in noise where N is not
far above K, so it is left out.

The eigenvalues of a wide layer would take longer than its solve. Above 1024 inputs the pivots of the elimination
H = A diag(d) A^T stand in for them, and what comes out is still a limit that no code gets below: any m pivots have a
product of at most the principal minor that they belong to, so of at most the m largest eigenvalues, and all of them
have the same product, det H. The logarithms of d are thus majorised by those of h, and at a fixed rate the limit is
convex and symmetric in logarithms. Eliminating large diagonals first keeps the two close: on the demo model's layers
(K = 256 and 640) the pivots' limit is 0.97 to 1 times the exact one at 2 bits, 0.99 to 1 at 3, 0.999 to 1 at 4. What
is added to the diagonal of H to make it definite, D, is taken off again: tr(D) N var(W) at the most. Of fewer tokens
than inputs H is not definite, but for the noise of float32; what is added then is added where elimination meets it, so
that it is run once.

Cost: K^3 / 3 multiply-adds in products, or 4/3 K^3, half of them memory-bound, for eigenvalues; the same for N with a
row Hessian. Layers with the same Hessian share them. The level takes a few steps of N log K. 8 K^2 bytes.
Sources: Cover and Thomas, Elements of Information Theory, theorem 10.3.3; rate-distortion theory of Kolmogorov, 1956;
Marshall, Olkin and Arnold, Inequalities: Theory of Majorization, chapters 1 and 9.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import all_finite, cholesky, definite_factor, one_thread
from lowbit.core.problem import LayerProblem
from lowbit.core.recall import Recall
from lowbit.core.symmetric import bands

MOST_EIGENVALUES = 1024
"""Inputs, or outputs under a row Hessian, up to which the limit is exact; above it is a bound from below."""
_RIDGE = 1e-7
"""Of the mean diagonal: above the noise of second moments summed in float32, which elimination would run into."""


@dataclass(frozen=True, eq=False)
class Components:
    """values: [K] variances, >= 0, in any order, whose limit is that of the matrix or below; added: what was added to
    the matrix's trace to get them."""

    values: Tensor
    added: float = 0.0


_known: Recall[Components] = Recall()


def loss_limit(problem: LayerProblem, bits_per_weight: float) -> float:
    """The rate-distortion limit of a layer's loss at `bits_per_weight` >= 0, everything stored included.

    Zero where nothing can be lost: no signal, or rows of equal weights (a row's mean counts as known).
    """
    require(bits_per_weight >= 0, f"loss_limit(bits_per_weight={bits_per_weight}): must be at least 0.")
    variance = problem.weight.var(dim=1, correction=0).double()
    rows, columns = Components(variance), _known.of(problem.hessian, None, lambda: components(problem.hessian))
    if problem.row_hessian is not None:
        deviation = variance.sqrt()
        rows = components(deviation[:, None] * problem.row_hessian.double() * deviation)
    limit = waterfilled(rows.values, columns.values, bits_per_weight * problem.weight.numel())
    added = columns.added * float(rows.values.sum()) + rows.added * float(columns.values.sum())
    return max(0.0, limit - added)


def bits_above(loss: float, limit: float) -> float | None:
    """Half the log2 of loss / limit: the bits by which each coded component falls behind; None where either is 0."""
    return 0.5 * math.log2(loss / limit) if loss > 0 and limit > 0 else None


def components(matrix: Tensor) -> Components:
    """Of a symmetric positive semi-definite matrix [K, K]: its eigenvalues, or its pivots where it is large."""
    return Components(spectrum(matrix)) if len(matrix) <= MOST_EIGENVALUES else pivots(matrix)


def pivots(matrix: Tensor) -> Components:
    """The pivots of a positive semi-definite matrix [K, K], those of large diagonals first."""
    mean = float(matrix.diagonal().mean())
    if not (mean > 0 and all_finite(matrix)):
        return Components(torch.zeros(len(matrix), dtype=torch.float64))
    order = torch.argsort(matrix.diagonal(), descending=True, stable=True)
    lower = torch.empty(matrix.shape, dtype=torch.float64)
    for band in bands(len(matrix)):  # indexing both axes at once would take a third matrix
        lower[band, : band.stop] = matrix[order[band]].index_select(1, order[: band.stop])
    ridge = _RIDGE * mean
    lower.diagonal().add_(ridge)
    added = [ridge * len(matrix)]

    def mended(block: Tensor) -> Tensor:
        """The factor of a block, with as much on its diagonal as that takes."""
        factor, more = definite_factor(block), ridge
        while factor is None:
            more *= 10
            factor = definite_factor(block + more * torch.eye(len(block), dtype=block.dtype))
        if more > ridge:
            added.append(more * len(block))
        return factor

    cholesky(lower, mended)
    return Components(lower.diagonal().square(), sum(added))


def spectrum(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric positive semi-definite matrix [K, K], ascending, float64, noise set to zero."""
    with one_thread():  # LAPACK's result depends on the number of threads
        values = torch.linalg.eigvalsh(matrix.double())
    noise = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    return torch.where(values > noise, values, 0.0)


def waterfilled(rows: Tensor, columns: Tensor, bits: float) -> float:
    """The least total squared error of Gaussian components of variances rows_i columns_j, coded in `bits` in all.

    rows: [N], columns: [K], both >= 0. The rate is convex and piecewise linear in the logarithm of the level, so
    Newton's steps from below the smallest component never overshoot and end at the exact level.
    """
    rows, columns = rows[rows > 0].double(), columns[columns > 0].double().sort(descending=True).values
    if not len(rows) or not len(columns):
        return 0.0
    row_logs, column_logs = rows.log2(), columns.log2()
    summed_logs = torch.nn.functional.pad(column_logs.cumsum(0), (1, 0))
    level, counts = float(row_logs.min() + column_logs[-1]), torch.full_like(row_logs, len(columns)).long()
    while True:
        coded = float(counts.sum())
        level = (float((counts * row_logs).sum() + summed_logs[counts].sum()) - 2 * bits) / coded
        above = torch.searchsorted(-column_logs, row_logs - level)
        if torch.equal(above, counts) or not bool(above.any()):
            break
        counts = torch.minimum(above, counts)
    left_out = torch.nn.functional.pad(columns.flip(0).cumsum(0).flip(0), (0, 1))[counts]
    return float(coded * 2.0**level + (rows * left_out).sum())
