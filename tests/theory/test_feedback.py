"""What the factorisation H + damping = A diag(d) A^T promises of rounding with feedback.

For E = W_hat - W the loss is sum_j d_j |(E A)_j|^2, and LDLQ makes (E A)_j the rounding error of column j alone
(QuIP, arXiv 2307.13304, section 3; the bounds are those of arXiv 2508.04853 for OPTQ).
"""

import math

import pytest
import torch

from laws.problems import correlated
from laws.tables import CODES
from laws.toys import Codebook, Lattice
from lowbit.codes import IntegerGrid
from lowbit.core.linalg import unit_upper_factor
from lowbit.core.maps import Permutation
from lowbit.core.order import visit
from lowbit.core.problem import LayerProblem
from lowbit.rounding import Ldlq, Nearest, Optq
from lowbit.transforms.order import by_diagonal

SEEDS = range(300, 320)
STEP = 0.25
DAMPING = 0.01


def damped(problem):
    hessian = problem.hessian.clone()
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    return LayerProblem(problem.weight, hessian)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_loss_is_what_each_column_leaves(code):
    for seed in list(SEEDS)[:5]:
        problem = correlated(seed)
        factor = unit_upper_factor(problem.hessian, DAMPING)
        w_hat = Ldlq(DAMPING).round(problem, code).w_hat
        residual = (w_hat - problem.weight) @ factor.unit_upper
        expected = float((factor.diagonal * residual.square()).sum())
        assert math.isclose(damped(problem).loss(w_hat), expected, rel_tol=1e-10)


def test_diagonal_is_that_of_optq():
    """d_j = 1 / U_jj^2 for OPTQ's Cholesky factor U of the inverse; A = (U / diag U)^-1."""
    for seed in SEEDS:
        problem = correlated(seed)
        factor = unit_upper_factor(problem.hessian, DAMPING)
        upper = torch.linalg.cholesky(torch.linalg.inv(damped(problem).hessian), upper=True)
        torch.testing.assert_close(factor.diagonal, upper.diagonal() ** -2, rtol=1e-9, atol=0)
        unit = upper / upper.diagonal()[:, None]
        torch.testing.assert_close(factor.unit_upper @ unit, torch.eye(len(unit), dtype=torch.float64))


@pytest.mark.parametrize("rounder", [Ldlq(DAMPING), Optq(DAMPING)], ids=repr)
def test_each_residual_is_at_most_half_a_step(rounder):
    """Without clamping |residual| <= s/2, so the loss is within (s^2/4) N sum_j d_j, and near a third of it."""
    losses, bounds = 0.0, 0.0
    for seed in SEEDS:
        problem = correlated(seed)
        factor = unit_upper_factor(problem.hessian, DAMPING)
        w_hat = rounder.round(problem, Lattice(STEP)).w_hat
        residual = (w_hat - problem.weight) @ factor.unit_upper
        bound = STEP**2 / 4 * len(w_hat) * float(factor.diagonal.sum())
        assert float(residual.abs().max()) <= STEP / 2 * (1 + 1e-9)
        assert damped(problem).loss(w_hat) <= bound
        losses, bounds = losses + damped(problem).loss(w_hat), bounds + bound
    assert losses / bounds == pytest.approx(1 / 3, rel=0.1)


@pytest.mark.parametrize("tile", [(1, 1), (1, 2), (2, 2), (1, 4)], ids=str)
def test_later_columns_cancel_all_they_can(tile):
    """If only the first tile is rounded and the rest could be anything, the loss is the least that tile allows."""

    class FirstTileOnly(Codebook):
        def encode(self, target, side, columns):
            codes, values = super().encode(target, side, columns)
            return codes, torch.where(columns >= self.tile[1], target, values)

    width = tile[1]
    for seed in list(SEEDS)[:5]:
        problem = correlated(seed)
        w_hat = Ldlq(DAMPING, slab=8).round(problem, FirstTileOnly(4, tile)).w_hat
        error, H = (w_hat - problem.weight)[:, :width], damped(problem).hessian
        rest = torch.linalg.solve(H[width:, width:], H[width:, :width])
        least = H[:width, :width] - H[:width, width:] @ rest
        assert math.isclose(damped(problem).loss(w_hat), float(torch.trace(error @ least @ error.T)), rel_tol=1e-9)


@pytest.mark.parametrize("rounder", [Ldlq(), Optq()], ids=repr)
@pytest.mark.parametrize("code", [IntegerGrid(3), IntegerGrid(2, 8), Lattice()], ids=repr)
def test_diagonal_hessian_means_nearest(rounder, code):
    for seed in SEEDS:
        problem = correlated(seed)
        problem = LayerProblem(problem.weight, problem.hessian.diagonal().diag())
        assert torch.equal(rounder.round(problem, code).codes, Nearest().round(problem, code).codes)


@pytest.mark.parametrize("code", [IntegerGrid(3), IntegerGrid(2, 8), Codebook()], ids=repr)
@pytest.mark.parametrize("factor", [0.25, 3.7, 1e6, 1e-9])
def test_scale_of_the_hessian_changes_nothing(code, factor):
    for seed in SEEDS:
        problem = correlated(seed)
        scaled = LayerProblem(problem.weight, factor * problem.hessian)
        assert torch.equal(Ldlq().round(scaled, code).codes, Ldlq().round(problem, code).codes)


def test_strong_damping_means_nearest():
    problem, code = correlated(300), IntegerGrid(4)
    strong = Ldlq(damping=900.0).round(problem, code).codes.int() - Nearest().round(problem, code).codes.int()
    weak = Ldlq(damping=0.01).round(problem, code).codes.int() - Nearest().round(problem, code).codes.int()
    assert int(strong.count_nonzero()) * 10 < int(weak.count_nonzero())


def test_last_column_is_rounded_alone():
    """A layer with one input is rounded to nearest, whatever its Hessian."""
    weight = correlated(1).weight[:, :1].contiguous()
    problem = LayerProblem(weight, torch.full((1, 1), 7.0, dtype=torch.float64))
    assert torch.equal(Ldlq().round(problem, IntegerGrid(3)).codes, Nearest().round(problem, IntegerGrid(3)).codes)


def test_costly_columns_first_is_better():
    """Descending diag(H) beats the columns' own order, and that beats ascending, on average over correlated inputs."""
    code, sums = IntegerGrid(3), {"descending": 0.0, "own": 0.0, "ascending": 0.0}
    for seed in range(400, 440):
        problem = correlated(seed, tokens=40)
        first = by_diagonal(problem)
        own, last = Permutation(torch.arange(problem.shape[1])), Permutation(first.index.flip(0))
        for name, order in zip(sums, (first, own, last), strict=True):
            sums[name] += problem.relative_loss(visit(Ldlq(), problem, code, order).w_hat)
    assert sums["descending"] < 0.95 * sums["own"]
    assert sums["own"] < 0.95 * sums["ascending"]
