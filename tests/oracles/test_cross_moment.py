"""The cross moment: its target by least squares, the exact split of the error, and OPTQ where x is z."""

import math

import pytest
import torch

from laws.problems import correlated_inputs
from laws.toys import Lattice
from lowbit.codes import IntegerGrid
from lowbit.core.errors import BadRequest
from lowbit.core.layer import quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.recipes import make_recipe
from lowbit.rounding import Ldlq, Nearest
from lowbit.statistics import CrossMoment, SecondMoment

N, K, TOKENS = 6, 24, 200


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    x = correlated_inputs(TOKENS, K, generator)
    noise = x.norm() / x.numel() ** 0.5 * torch.randn(TOKENS, K, generator=generator, dtype=torch.float64)
    return x, x + 0.3 * noise


@pytest.fixture(scope="module")
def weight():
    return torch.randn(N, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def problem_of(statistic, x, z, weight):
    state = statistic.update(statistic.init(K), {"inputs": z, "float_inputs": x})
    return statistic.problem(state, weight)


def damping_of(z, fraction):
    """lambda by another way: the largest singular value of z."""
    return fraction * float(torch.linalg.svdvals(z).max() ** 2) / len(z)


@pytest.mark.parametrize("fraction", [0.0, 1e-6, 1e-2])
def test_the_target_is_the_ridge_regression_of_outputs_on_inputs(inputs, weight, fraction):
    """W' minimises |X W^T - Z W'^T|^2 / T + lambda |W' - W|^2: least squares with sqrt(T lambda) I below X and Z."""
    x, z = inputs
    ridge = (TOKENS * damping_of(z, fraction)) ** 0.5 * torch.eye(K, dtype=torch.float64)
    outputs = torch.cat([x, ridge]) @ weight.T
    expected = torch.linalg.lstsq(torch.cat([z, ridge]), outputs).solution.T
    problem, outcomes = problem_of(CrossMoment(fraction), x, z, weight)
    assert not outcomes
    torch.testing.assert_close(problem.weight, expected, rtol=1e-6, atol=1e-6)


def test_the_error_is_a_constant_and_the_proxy_loss(inputs, weight):
    """T7: |X w - Z w_hat|^2 + lambda |w - w_hat|^2 = mismatch + (w_hat - w') (H + lambda I) (w_hat - w')^T."""
    x, z = inputs
    fraction = 1e-3
    ridge = damping_of(z, fraction)
    problem, _ = problem_of(CrossMoment(fraction), x, z, weight)
    damped = LayerProblem(problem.weight, problem.hessian + ridge * torch.eye(K, dtype=torch.float64))
    gaps = []
    for step in (0.3, 0.5, 1.0):
        for rounder in (Nearest(), Ldlq(0.0)):
            w_hat = rounder.round(damped, Lattice(step)).w_hat
            error = float(
                (x @ weight.T - z @ w_hat.T).square().sum() / TOKENS + ridge * (weight - w_hat).square().sum()
            )
            gaps.append(error - damped.loss(w_hat))
    assert min(gaps) > 0
    assert max(gaps) - min(gaps) <= 1e-8 * max(gaps)


def test_equal_inputs_make_it_optq_bit_for_bit(inputs, weight):
    x, weight = inputs[0].float(), weight.float()
    state = SecondMoment().update(SecondMoment().init(K), {"inputs": x})
    plain = SecondMoment().problem(state, weight)[0]
    problem, outcomes = problem_of(CrossMoment(), x, x.clone(), weight)
    assert not outcomes
    assert torch.equal(problem.weight, weight)
    assert torch.equal(problem.hessian, plain.hessian)
    ours = quantize_layer(problem, make_recipe("qronos", {"bits": 3}), stream(0, "law"))
    optq = make_recipe("optq", {"bits": 3, "act_order": True, "static_groups": True})
    theirs = quantize_layer(plain, optq, stream(0, "law"))
    assert torch.equal(ours.codes, theirs.codes)


def test_it_is_better_than_optq_on_either_input(inputs, weight):
    """What the layer is for: outputs of the original model from inputs of the quantized one."""
    x, z = inputs

    def error(problem):
        w_hat = Ldlq().round(problem, IntegerGrid(4)).w_hat
        return float((x @ weight.T - z @ w_hat.T).square().sum())

    blind = [error(LayerProblem(weight, seen.T @ seen / TOKENS)) for seen in inputs]
    assert error(problem_of(CrossMoment(), x, z, weight)[0]) < 0.9 * min(blind)


def test_fewer_tokens_than_inputs_change_nothing_that_was_not_seen(inputs, weight):
    x, z = inputs[0][:8], inputs[1][:8]
    problem, outcomes = problem_of(CrossMoment(), x, z, weight)
    assert not outcomes
    unseen = torch.eye(K, dtype=torch.float64) - torch.linalg.pinv(z) @ z
    torch.testing.assert_close(problem.weight @ unseen, weight @ unseen, rtol=0, atol=1e-3)
    assert math.isclose(problem.relative_loss(problem.weight), 0)


def test_no_damping_and_too_few_tokens_is_said(inputs, weight):
    x, z = inputs[0][:8], inputs[1][:8]
    problem, outcomes = problem_of(CrossMoment(0.0), x, z, weight)
    assert [outcome.kind for outcome in outcomes] == ["damping raised"]
    assert bool(torch.isfinite(problem.weight).all())


@pytest.mark.parametrize("damping", [-1e-6, 2.0, float("nan")])
def test_damping_out_of_range(damping):
    with pytest.raises(BadRequest, match="must be"):
        CrossMoment(damping)
