"""The factorisation and its damping ladder: right, the same on any number of threads, and frank about what it did."""

import pytest
import torch

from laws.problems import correlated
from laws.statements import threads
from laws.tables import ROUNDERS
from lowbit.codes import IntegerGrid
from lowbit.core.errors import BadRequest
from lowbit.core.linalg import cholesky, one_thread, unit_upper_factor
from lowbit.core.problem import LayerProblem
from lowbit.rounding import Ldlq, Nearest, Optq


def definite(k: int) -> torch.Tensor:
    x = torch.randn(2 * k, k, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    return x.T @ x / (2 * k)


def kinds(outcomes) -> list[str]:
    return [outcome.kind for outcome in outcomes]


@pytest.mark.parametrize("k", [1, 2, 255, 256, 257, 600])
def test_cholesky_is_that_of_torch(k):
    matrix = definite(k)
    lower = cholesky(matrix.clone())
    torch.testing.assert_close(lower, torch.linalg.cholesky(matrix), rtol=1e-10, atol=1e-10)
    assert torch.equal(lower, lower.tril())


def test_cholesky_is_the_same_on_any_number_of_threads():
    matrix, results = definite(600), []
    for count in (1, 2):
        with threads(count):
            results.append(cholesky(matrix.clone()))
            assert torch.get_num_threads() == count
    assert torch.equal(*results)


@pytest.mark.parametrize("where", [0, 255, 256, 590])
def test_cholesky_refuses_what_is_not_definite(where):
    matrix = definite(600)
    matrix[where, where] = -1e-3
    assert cholesky(matrix) is None


def test_one_thread_gives_the_threads_back_after_an_error():
    def fails():
        with one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError("on purpose")

    with threads(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            fails()
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("damping", [0.0, 0.01, 2.0, 1000.0])
@pytest.mark.parametrize("k", [1, 24, 300])
def test_factor_multiplies_to_the_damped_hessian(k, damping):
    hessian = definite(k)
    before = hessian.clone()
    factor = unit_upper_factor(hessian, damping)
    A = factor.unit_upper
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(A @ factor.diagonal.diag() @ A.T, damped, rtol=1e-10, atol=1e-12)
    assert torch.equal(A, A.triu())
    assert torch.equal(A.diagonal(), torch.ones(k, dtype=torch.float64))
    assert bool((factor.diagonal > 0).all())
    assert factor.damping == damping
    assert factor.outcomes == ()
    assert torch.equal(hessian, before)


def test_a_singular_hessian_is_damped_and_said_so():
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = unit_upper_factor(x.T @ x, 0.0)
    assert kinds(factor.outcomes) == ["damping raised"]
    assert 0 < factor.damping <= 1e-3
    assert f"{factor.damping:g} was used" in factor.outcomes[0].detail
    assert factor.outcomes[0].remedy


@pytest.mark.parametrize("lowest", [-0.05, -3.0])
def test_an_indefinite_hessian_is_damped_past_its_lowest_eigenvalue(lowest):
    hessian = torch.eye(8, dtype=torch.float64)
    hessian[0, 1] = hessian[1, 0] = 1 - lowest
    factor = unit_upper_factor(hessian, 0.01)
    assert -lowest < factor.damping <= -10 * lowest
    assert kinds(factor.outcomes) == ["damping raised"]


@pytest.mark.parametrize("hessian", [-torch.eye(4), torch.eye(4).flip(0), torch.tensor([[1.0, 1e5], [1e5, 1.0]])])
def test_what_no_damping_helps_is_refused(hessian):
    with pytest.raises(BadRequest, match="not positive definite even with damping 1000"):
        unit_upper_factor(hessian, 0.01)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rounder", ["ldlq", "ldlq, odd slabs"])
def test_a_hessian_that_is_not_finite_is_refused(rounder, value):
    problem = correlated(0)
    hessian = problem.hessian.clone()
    hessian[2, 3] = hessian[3, 2] = value
    with pytest.raises(BadRequest, match=r"not finite.*calibration"):
        ROUNDERS[rounder].round(LayerProblem(problem.weight, hessian), IntegerGrid(3))


def test_no_signal_means_nearest_and_is_said():
    problem, code = correlated(0), IntegerGrid(3, 8)
    problem = LayerProblem(problem.weight, torch.zeros_like(problem.hessian))
    rounded = Ldlq().round(problem, code)
    assert kinds(rounded.outcomes) == ["no signal"]
    assert "Calibrate" in rounded.outcomes[0].remedy
    assert torch.equal(rounded.codes, Nearest().round(problem, code).codes)
    assert problem.relative_loss(rounded.w_hat) == 0


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_dead_inputs_are_counted_and_rounded_to_nearest(damping):
    problem, code, dead = correlated(0), IntegerGrid(3), [0, 7, 23]
    hessian = problem.hessian.clone()
    hessian[dead], hessian[:, dead] = 0, 0
    problem = LayerProblem(problem.weight, hessian)
    rounded = Ldlq(damping).round(problem, code)
    assert kinds(rounded.outcomes) == ["dead inputs"] + ["damping raised"] * (damping == 0)
    assert "3 of 24 inputs" in rounded.outcomes[0].detail
    assert torch.equal(rounded.codes[:, dead], Nearest().round(problem, code).codes[:, dead])


def test_the_oracle_refuses_what_it_cannot_factor():
    problem = correlated(0)
    for hessian in (torch.zeros_like(problem.hessian), -problem.hessian, torch.full_like(problem.hessian, torch.nan)):
        with pytest.raises(BadRequest, match="Use Ldlq"):
            Optq().round(LayerProblem(problem.weight, hessian), IntegerGrid(3))
