"""What a rounder can promise before it has seen the weights: worst cases of its loss.

Legend: E = W_hat - W; H + damping = A diag(d) A^T; R = E A [N, K] the rounding errors that feedback leaves; c_ij the
largest rounding error of a weight, half a step of its grid; G = I where there is no row Hessian.

    feedback      sum_ij d_j r_ij^2       <= sum_ij d_j c_ij^2           OPTQ and LDLQ, where |r_ij| <= c_ij
    of both sides sum_ij g_i d_j r_ij^2   <= sum_ij g_i d_j c_ij^2       G = B diag(g) B^T and R = B^T E A
    stochastic    the same                <= 4 times as much             where |r_ij| < a step; E r_ij^2 <= c_ij^2
    nearest       tr(G E H E^T)           <= sum_ij c_ij (|G| C |H|)_ij  no feedback, |e_ij| <= c_ij
    Qronos        mismatch + the first                                   feedback on the target that mends most

The loss with damping is bounded, and so the smaller one without. A weight pushed out of its code's range is clamped
and may err by more: each guarantee comes with the share of weights for which that happened, and holds where it is 0.
OPTQ's and LDLQ's bounds are attained where every r_ij is half a step, and three times the average.

Cost: N K^2 multiply-adds for R, N K for the bound.
Papers: QuIP (arXiv 2307.13304), section 3 and lemma 2; Provable PTQ (arXiv 2508.04853), here with constants of our own
derivation; Qronos (arXiv 2505.11695).
"""

import math

import torch
from torch import Tensor

from lowbit.core.cells import half_widths
from lowbit.core.linalg import Factor
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Guarantee, Rounded
from lowbit.core.symmetric import bands
from lowbit.rounding.rows import is_diagonal

# Rounding errors are computed in the weights' own precision; half a step is exceeded by this much without clamping.
_SLACK = 1e-3


def feedback_guarantee(
    problem: LayerProblem, rounded: Rounded, code: Code, columns: Factor, rows: Factor | None = None
) -> Guarantee | None:
    """For rounding with the feedback of `columns`, of H, and of `rows`, of G where there is any; both may be damped.

    None where the code does not tell its half-widths, or where G couples rows and there was no feedback between them.
    """
    G, error = problem.row_hessian, problem.weight - rounded.w_hat
    if G is not None and rows is None and not is_diagonal(G):
        return None
    squares, clamped = torch.zeros(len(error), dtype=torch.float64), 0.0
    for band in bands(error.shape[1]):
        cells = _cells(code, rounded, band)
        if cells is None:
            return None
        left = error[:, : band.stop] @ columns.unit_upper[: band.stop, band].to(error.dtype)
        left = left if rows is None else rows.unit_upper.T.to(left.dtype) @ left
        squares += cells.square() @ columns.diagonal[band]
        clamped += _clamped(left, cells) * cells.shape[1] / error.shape[1]
    if rows is not None:
        squares *= rows.diagonal
    elif G is not None:
        squares *= G.double().diagonal()
    return Guarantee(float(squares.sum()), clamped)


def nearest_guarantee(problem: LayerProblem, rounded: Rounded, code: Code) -> Guarantee | None:
    """For rounding each weight alone; None where the code does not tell its half-widths.

    Attained where one sign pattern of E makes every product in the loss positive, such as for H of rank one.
    """
    cells = _cells(code, rounded, slice(0, problem.shape[1]))
    if cells is None:
        return None
    paired = cells @ problem.hessian.double().abs()
    if problem.row_hessian is not None:
        paired = problem.row_hessian.double().abs() @ paired
    return Guarantee(float((paired * cells).sum()), _clamped(problem.weight - rounded.w_hat, cells))


def incoherent_trace(hessian: Tensor) -> float:
    """QuIP's bound of sum_j d_j: mu^2 / K tr(H^(1/2))^2, with mu = sqrt(K) max |Q_ij| over the eigenvectors of H.

    Looser than the sum itself, which feedback_guarantee takes; it says what rotating (mu near 1) is for.
    """
    values, vectors = torch.linalg.eigh(hessian.double())
    coherence = float(vectors.abs().max()) ** 2 * len(values)
    return coherence / len(values) * float(values.clamp_min(0).sqrt().sum()) ** 2


def largest_output_error(step: float, pivots: Tensor, tokens: int, outputs: int, exponent: float = 1.0) -> float:
    """What no output of any calibration token errs by, after stochastic rounding with feedback.

    Holds with probability 1 - sqrt(2) M^-exponent for M = (tokens + K) outputs: each rounding error is dominated in
    convex order by a Gaussian of variance pi step^2 / 2, the directions they act in are orthogonal, and the largest of
    M such Gaussians is bounded by the union. pivots: d [K] of H, the mean over so many tokens, with damping > 0.
    """
    coordinates = (tokens + len(pivots)) * outputs
    return step * math.sqrt(tokens * float(pivots.max()) * 2 * math.pi * (exponent + 1) * math.log(coordinates))


def mismatch(weight: Tensor, float_moment: Tensor, cross_moment: Tensor, hessian: Tensor, damping: float) -> float:
    """What no quantized weight can mend where inputs changed: the least of E |W x - V z|^2 + damping |W - V|^2 over V.

    weight: [N, K]; float_moment E[x x^T], cross_moment E[x z^T], hessian E[z z^T], each [K, K]; damping: added to the
    diagonals, absolute. Least at V = W (C + damping) (H + damping)^-1, Qronos's target.
    """
    W, own = weight.double(), damping * torch.eye(len(hessian), dtype=torch.float64)
    pulled = W @ (cross_moment.double() + own)
    target = torch.linalg.solve(hessian.double() + own, pulled.T).T
    return float((W @ (float_moment.double() + own) * W).sum() - (pulled * target).sum())


def _cells(code: Code, rounded: Rounded, band: slice) -> Tensor | None:
    """C of a band of columns, float64: the half-widths of the code with the side it ended with."""
    half = half_widths(code, rounded.side, torch.arange(band.start, band.stop))
    return None if half is None else half.double().expand(len(rounded.w_hat), band.stop - band.start)


def _clamped(error: Tensor, cells: Tensor) -> float:
    return float((error.abs() > (1 + _SLACK) * cells).double().mean())
