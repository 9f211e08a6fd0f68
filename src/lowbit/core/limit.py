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

Cost: two symmetric eigenvalue problems, 4/3 (K^3 + N^3) multiply-adds, the second only with a row Hessian; the level
takes a few steps of N log K. Small beside the Hessian itself, T K^2 over T calibration tokens.
Sources: Cover and Thomas, Elements of Information Theory, theorem 10.3.3; rate-distortion theory of Kolmogorov, 1956.
"""

import math

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.linalg import one_thread
from lowbit.core.problem import LayerProblem


def loss_limit(problem: LayerProblem, bits_per_weight: float) -> float:
    """The rate-distortion limit of a layer's loss at `bits_per_weight` >= 0, everything stored included.

    Zero where nothing can be lost: no signal, or rows of equal weights (a row's mean counts as known).
    """
    require(bits_per_weight >= 0, f"loss_limit(bits_per_weight={bits_per_weight}): must be at least 0.")
    variance = problem.weight.double().var(dim=1, correction=0)
    rows = variance
    if problem.row_hessian is not None:
        deviation = variance.sqrt()
        rows = spectrum(deviation[:, None] * problem.row_hessian.double() * deviation)
    return waterfilled(rows, spectrum(problem.hessian), bits_per_weight * problem.weight.numel())


def bits_above(loss: float, limit: float) -> float | None:
    """Half the log2 of loss / limit: the bits by which each coded component falls behind; None where either is 0."""
    return 0.5 * math.log2(loss / limit) if loss > 0 and limit > 0 else None


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
