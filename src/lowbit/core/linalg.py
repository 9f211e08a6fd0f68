"""The factorisation under every rounding step, with a damping ladder that tells what it did.

    H + damping * mean(diag H) * I = A diag(d) A^T,     A unit upper triangular, d > 0

Then loss = sum_j d_j |(E A)_j|^2 for E = W_hat - W: each column meets its own cost d_j once the errors of the
columns before it are cancelled. This is LDLQ's form (QuIP, arXiv 2307.13304, eq. 4) and equals OPTQ's Cholesky
factor of the inverse (arXiv 2210.17323) with 1/d_j = U_jj^2; one factorisation instead of three.

Cost: K^3 / 6 multiply-adds in float64, 8 K^2 bytes beside H. The result does not depend on the number of threads:
LAPACK's own factorisation does, so we call it on fixed diagonal blocks by one thread and leave the rest to products.
Layers that share their inputs have one Hessian, the same tensor, and get the same factor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require
from lowbit.core.recall import Recall
from lowbit.core.records import Outcome
from lowbit.core.symmetric import turn

_BLOCK = 256
_LARGEST_DAMPING = 1e3


@dataclass(frozen=True, eq=False)
class Factor:
    """A [K, K] unit upper triangular and d [K], in float64, with what had to be done to get them."""

    unit_upper: Tensor
    diagonal: Tensor
    damping: float
    outcomes: tuple[Outcome, ...]


_factors: Recall[Factor] = Recall()


def unit_upper_factor(hessian: Tensor, damping: float) -> Factor:
    """Factor `hessian` [K, K] after adding `damping` (a fraction of its mean diagonal, 0 to 1000) to its diagonal.

    Where that is not positive definite, damping is raised tenfold (from 1e-6 on) until it is, and the outcome says
    so. Raises BadRequest when the matrix is not finite or not even strong damping makes it definite. The factor may be
    shared: it is not to be changed.
    """
    return _factors.of(hessian, damping, lambda: _factored(hessian, damping))


def _factored(hessian: Tensor, damping: float) -> Factor:
    h = hessian.double()
    _require_finite(h)
    mean = float(h.diagonal().mean())
    if not bool(h.any()):
        return Factor(torch.eye(len(h), dtype=h.dtype), torch.ones(len(h), dtype=h.dtype), damping, (no_signal(),))
    used, outcomes = damping, dead_inputs(h)
    while mean > 0 and used <= _LARGEST_DAMPING:
        damped = turn(h.clone())  # the one copy: the factor grows in it
        damped.diagonal().add_(used * mean)
        lower = cholesky(damped)
        if lower is not None:
            if used != damping:
                outcomes = (*outcomes, damping_raised(damping, used))
            upper = turn(lower)
            pivots = upper.diagonal().clone()
            return Factor(upper.div_(pivots), pivots.square(), used, outcomes)
        used = max(10 * used, 1e-6)
    raise BadRequest(
        f"The Hessian (mean diagonal {mean:g}) is not positive definite even with damping {_LARGEST_DAMPING:g} of it. "
        "It is no second moment; look for a fault in the statistic that made it."
    )


def check_damping(part: object, damping: float) -> None:
    """Raise BadRequest unless `damping` is one that `unit_upper_factor` can add; `part` names who was given it."""
    require(
        isinstance(damping, int | float) and 0 <= damping <= _LARGEST_DAMPING,
        f"{type(part).__name__}(damping={damping!r}): must be 0 to {_LARGEST_DAMPING:g}. Use 0.01.",
    )


def definite_factor(block: Tensor) -> Tensor | None:
    """Lower Cholesky factor of a small symmetric matrix, by one thread; None where it is not positive definite."""
    with one_thread():
        lower, info = torch.linalg.cholesky_ex(block)
    definite = int(info) == 0 and bool(torch.isfinite(lower.diagonal()).all())
    return lower if definite else None


def cholesky(matrix: Tensor, factor: Callable[[Tensor], Tensor | None] = definite_factor) -> Tensor | None:
    """Lower Cholesky factor of a symmetric matrix [K, K], overwriting it, from its lower half; None where it is not
    positive definite. factor: of the blocks on the diagonal, less what the columns before them explain."""
    k = len(matrix)
    for start in range(0, k, _BLOCK):
        stop = min(start + _BLOCK, k)
        done = matrix[start:stop, :start]
        matrix[start:, start:stop] -= matrix[start:, :start] @ done.T
        block = factor(matrix[start:stop, start:stop])
        if block is None:
            return None
        matrix[start:stop, start:stop] = block
        if stop < k:
            below = torch.linalg.solve_triangular(block, matrix[stop:, start:stop].T, upper=False)
            matrix[stop:, start:stop] = below.T
    return matrix.tril_()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the body on one intra-operation thread, for routines whose result depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def dead_inputs(hessian: Tensor) -> tuple[Outcome, ...]:
    """An outcome naming how many inputs were zero on every calibration token, or nothing."""
    dead = int((hessian.diagonal() == 0).sum())
    if not dead:
        return ()
    return (
        Outcome(
            "dead inputs",
            f"{dead} of {len(hessian)} inputs never fired in calibration: their weights are rounded to nearest.",
            "Calibrate on more, or more varied, text.",
        ),
    )


def no_signal() -> Outcome:
    return Outcome(
        "no signal",
        "The Hessian is zero: no calibration token reached this layer; weights are rounded to nearest.",
        "Calibrate on more, or more varied, text.",
    )


def damping_raised(asked: float, used: float) -> Outcome:
    return Outcome(
        "damping raised",
        f"The Hessian was not positive definite with damping {asked:g}; {used:g} was used.",
        "Use more calibration tokens than the layer has inputs, or ask for this damping.",
    )


def checked_second_moment(hessian: Tensor) -> tuple[Outcome, ...]:
    """The outcomes of a Hessian [K, K] that is used without a factorisation: no signal, or dead inputs.

    Raises BadRequest where it cannot be a second moment: not finite, or a negative diagonal.
    """
    _require_finite(hessian)
    least = float(hessian.diagonal().min())
    if least < 0:
        raise BadRequest(
            f"The Hessian has {least:g} on its diagonal. It is no second moment; look for a fault in the statistic "
            "that made it."
        )
    return dead_inputs(hessian) if bool(hessian.any()) else (no_signal(),)


def all_finite(x: Tensor) -> bool:
    """Whether no number is NaN or Inf. One that is makes the sum so, which takes no memory and a pass; all are looked
    at only where large numbers may have done it."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def _require_finite(hessian: Tensor) -> None:
    if not all_finite(hessian):
        raise BadRequest("The Hessian is not finite. Look for Inf or NaN in the calibration activations.")
