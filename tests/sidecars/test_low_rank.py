"""Low-rank corrections against the singular value decomposition, in the metrics that they can be asked for."""

from dataclasses import replace

import pytest
import torch

from laws.problems import correlated
from lowbit.codes import IntegerGrid
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.layer import quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.recipes import lorc, optq
from lowbit.rounding import Ldlq, Nearest
from lowbit.sidecars import LowRank

PROBLEM = correlated(0, 48, 64)
W_HAT = Nearest().round(PROBLEM, IntegerGrid(2)).w_hat
ERROR = PROBLEM.weight - W_HAT


def fitted(side_car, problem=PROBLEM, w_hat=W_HAT):
    """The correction of given codes, beside which nothing was before."""
    side_car = replace(side_car, first="codes")
    return side_car.fit(problem, side_car.start(problem), w_hat)


def loss(side_car):
    return PROBLEM.loss(W_HAT + fitted(side_car).dense())


@pytest.mark.parametrize("rank", [1, 4, 20, 48])
def test_plain_is_the_singular_value_decomposition(rank):
    """Eckart-Young: what remains of the error is its other singular values."""
    remains = (ERROR - fitted(LowRank(rank, "identity")).dense()).square().sum()
    expected = torch.linalg.svdvals(ERROR)[rank:].square().sum()
    torch.testing.assert_close(remains, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 20, 48])
def test_the_hessian_metric_is_the_best_there_is(rank):
    expected = float(torch.linalg.svdvals(ERROR @ torch.linalg.cholesky(PROBLEM.hessian))[rank:].square().sum())
    assert loss(LowRank(rank, "hessian")) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("rank", [1, 2, 8, 24])
def test_metrics_by_what_they_know(rank):
    plain, diagonal, hessian = (loss(LowRank(rank, metric)) for metric in ("identity", "diagonal", "hessian"))
    assert hessian < diagonal < plain < PROBLEM.loss(W_HAT)
    alike = LayerProblem(PROBLEM.weight, 3 * torch.eye(64, dtype=torch.float64))
    one, other = (fitted(LowRank(rank, metric), alike).dense() for metric in ("identity", "hessian"))
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_the_diagonal_metric_is_a_weighted_decomposition():
    size = PROBLEM.hessian.diagonal().sqrt()
    remains = ((ERROR - fitted(LowRank(5, "diagonal")).dense()) * size).square().sum()
    torch.testing.assert_close(remains, torch.linalg.svdvals(ERROR * size)[5:].square().sum(), rtol=1e-4, atol=1e-4)


def test_a_layer_larger_than_the_subspace():
    """White errors, the hardest spectrum: 4 m / n of the energy is all there is, and iteration finds nearly all."""
    n, rank = 400, 4
    weight = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    problem = LayerProblem(weight, torch.eye(n, dtype=torch.float64))
    correction = fitted(LowRank(rank), problem, torch.zeros(n, n))
    held = float(1 - (weight - correction.dense()).square().sum() / weight.square().sum())
    best = float(torch.linalg.svdvals(weight)[:rank].square().sum() / weight.square().sum())
    assert 0.98 * best < held <= best * (1 + 1e-6)
    assert best == pytest.approx(4 * rank / n, rel=0.15)


def test_full_rank_is_no_loss():
    layer = quantize_layer(PROBLEM, replace(optq(bits=2), side_car=LowRank(48)), stream(0, "rank"))
    assert layer.stats["relative_loss"] < 1e-5


def test_int8_factors_cost_little():
    exact, rounded = loss(LowRank(8)), loss(LowRank(8, dtype="int8"))
    assert rounded < 1.02 * exact


def test_factors_are_balanced_whatever_the_size_of_the_layer():
    """Layers of tiny weights keep their correction in float16."""
    small = LayerProblem(PROBLEM.weight * 1e-6, PROBLEM.hessian)
    correction = fitted(LowRank(8), small, W_HAT * 1e-6)
    assert small.loss(W_HAT * 1e-6 + correction.dense()) < 1.01e-12 * loss(LowRank(8))


def test_turns_never_lose_and_win_on_coarse_codes():
    recipe = replace(optq(bits=2), rounder=Nearest())
    losses = [
        quantize_layer(PROBLEM, replace(recipe, side_car=LowRank(4, turns=turns)), stream(0, "turns")).stats["loss"]
        for turns in (1, 2, 8)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.9 * losses[0]


def test_corrects_what_feedback_left():
    plain = quantize_layer(PROBLEM, optq(bits=2), stream(0, "ldlq"))
    corrected = quantize_layer(PROBLEM, replace(optq(bits=2), side_car=LowRank(4)), stream(0, "ldlq"))
    assert isinstance(plain.recipe.rounder, Ldlq)
    assert corrected.stats["loss"] < 0.9 * plain.stats["loss"]


@pytest.mark.parametrize("turns", [1, 4])
def test_factors_first_leave_less_to_the_codes(turns):
    """Where the weight has large regular components, as those of models do."""
    generator, losses = torch.Generator().manual_seed(3), []
    regular = 4 * torch.randn(48, 2, generator=generator).double() @ torch.randn(2, 64, generator=generator).double()
    problem, recipe = replace(PROBLEM, weight=PROBLEM.weight + regular), optq(bits=2)
    for first in ("factors", "codes"):
        side_car = LowRank(4, turns=turns, first=first)
        losses.append(quantize_layer(problem, replace(recipe, side_car=side_car), stream(0, "first")).stats["loss"])
    assert losses[0] < losses[1]


def test_codes_first_in_one_turn_leaves_the_codes_as_they_were():
    corrected = quantize_layer(PROBLEM, replace(optq(bits=2), side_car=LowRank(4, first="codes")), stream(0, "codes"))
    assert torch.equal(corrected.codes, quantize_layer(PROBLEM, optq(bits=2), stream(0, "codes")).codes)


def test_a_correction_that_would_harm_is_left_out():
    """The plain metric does not see that the large errors do not matter."""
    hessian = torch.diag(torch.tensor([1.0] + [1e-9] * 7, dtype=torch.float64))
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight[:, 0] /= 1000
    problem, w_hat = LayerProblem(weight, hessian), torch.zeros(8, 8, dtype=torch.float64)
    assert problem.loss(w_hat + fitted(LowRank(1, "identity"), problem, w_hat).dense()) <= problem.loss(w_hat)


def test_bits_of_the_recipe():
    shape = (4096, 4096)
    assert bits_per_weight(lorc().fields(shape), shape) == pytest.approx(4 + 20 / 4096 + 0.03125, abs=1e-4)
    assert bits_per_weight(lorc(rank=32, dtype="float16").fields(shape), shape) == 4 + 20 / 4096 + 0.25


def test_settings_out_of_range_are_refused():
    with pytest.raises(BadRequest, match=r"rank=7.*smaller side of a \[6, 24\] layer. Use at most 6"):
        LowRank(7).check((6, 24))
    for settings, message in (
        ({"rank": 0}, "rank=0.*at least 1"),
        ({"turns": 0}, "turns=0.*at least 1"),
        ({"metric": "trace"}, "metric='trace'.*identity, diagonal, hessian"),
        ({"first": "bits"}, "first='bits'.*factors, codes"),
        ({"dtype": "int4"}, "dtype='int4'.*float16, int8"),
    ):
        with pytest.raises(BadRequest, match=message):
            LowRank(**settings)
