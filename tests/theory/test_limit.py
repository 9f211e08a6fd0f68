"""The rate-distortion limit: what it is in the cases one can work out, and that no code gets below it."""

import heapq
import itertools
import math

import pytest
import torch

from laws.problems import correlated, problems
from laws.tables import CODES, FEWER_PAIRS
from laws.toys import Sheared
from lowbit.core.errors import BadRequest
from lowbit.core.layer import quantize_layer
from lowbit.core.limit import bits_above, loss_limit, pivots, spectrum, waterfilled
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.core.recipe import Recipe
from lowbit.rounding import Ldlq, Nearest
from lowbit.statistics import FisherDiagonal, SecondMoment
from lowbit.transforms import NoTransform


def gaussian(n, k, seed, spread=0.0):
    """Rows of different sizes, and a well-conditioned Hessian in a random basis whose logarithms spread so far."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(n, 1, generator=generator, dtype=torch.float64) + 0.5
    weight = torch.randn(n, k, generator=generator, dtype=torch.float64) * sizes
    basis = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0]
    values = torch.exp(spread * torch.linspace(-1, 1, k, dtype=torch.float64))
    return LayerProblem(weight, basis * values @ basis.T, sensitivity=torch.ones_like(weight))


def poured(variances, bits, portion=2**-9):
    """Reverse water-filling by hand: small portions of rate, each where the distortion is the largest."""
    heap = [-v for v in variances]
    heapq.heapify(heap)
    for _ in range(round(bits / portion)):
        heapq.heapreplace(heap, heap[0] * 4**-portion)
    return -sum(heap)


@pytest.mark.parametrize("bits", [0.0, 1.0, 2.0, 3.25])
def test_equal_components_lose_six_decibels_a_bit(bits):
    """D(R) = variance 2^(-2R) for H = I and rows of one size."""
    weight = torch.randn(7, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, correction=0, keepdim=True)
    limit = loss_limit(LayerProblem(weight, torch.eye(40, dtype=torch.float64)), bits)
    assert math.isclose(limit, 7 * 40 * 4.0**-bits, rel_tol=1e-12)


def test_above_the_level_it_is_the_determinant():
    """N K det(S)^(1/N) det(H)^(1/K) 2^(-2R) where every component is worth coding."""
    for seed in range(5):
        problem = gaussian(5, 12, seed, spread=1.0)
        n, k = problem.shape
        variance = problem.weight.var(1, correction=0)
        expected = n * k * float(variance.log().mean().exp() * (torch.logdet(problem.hessian) / k).exp()) * 4.0**-3
        assert math.isclose(loss_limit(problem, 3.0), expected, rel_tol=1e-10)


@pytest.mark.parametrize("bits", [0.1, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("character", [0.0, 3.0, 8.0])
def test_level_is_that_of_pouring_by_hand(bits, character):
    generator = torch.Generator().manual_seed(1)
    rows, columns = (torch.exp(character * torch.randn(d, generator=generator, dtype=torch.float64)) for d in (4, 9))
    expected = poured((rows[:, None] * columns).flatten().tolist(), bits * 36)
    found = waterfilled(rows, columns, bits * 36)
    assert found == pytest.approx(expected, rel=2e-3)
    assert found <= expected * (1 + 1e-12)


def test_no_bits_lose_everything_and_bits_never_hurt():
    problem = gaussian(4, 10, 0, spread=4.0)
    assert math.isclose(
        loss_limit(problem, 0.0),
        float(problem.weight.var(1, correction=0).sum() * problem.hessian.trace()),
        rel_tol=1e-12,
    )
    limits = [loss_limit(problem, bits / 4) for bits in range(40)]
    # A bit a weight buys at least 6 dB, and just that once every component is coded.
    assert all(later <= earlier / 2**0.5 * (1 + 1e-12) for earlier, later in itertools.pairwise(limits))
    assert math.isclose(limits[-1], limits[-5] / 4, rel_tol=1e-10)


def test_inputs_that_never_fire_leave_their_bits_to_the_others():
    """Half the components cost nothing, so the others get twice the rate."""
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    half = torch.diag((torch.arange(32) < 16).double())
    whole = loss_limit(LayerProblem(weight, torch.eye(32, dtype=torch.float64)), 4.0)
    assert math.isclose(loss_limit(LayerProblem(weight, half), 2.0), whole / 2, rel_tol=1e-10)


def test_a_hessian_of_few_tokens_has_a_limit_where_its_determinant_is_zero():
    problem = correlated(3, tokens=8)
    assert int((spectrum(problem.hessian) > 0).sum()) == 8
    assert loss_limit(problem, 2.0) > 0


@pytest.mark.parametrize("bits", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("tokens", [24, 400])
def test_pivots_never_promise_less_than_eigenvalues(bits, tokens):
    """From below at every rate, by little where the Hessian is definite and the rate is not near zero."""
    for seed in range(5):
        hessian, rows = correlated(seed, tokens=tokens).hessian, torch.tensor([1.0, 2.0, 0.5])
        found = pivots(hessian)
        exact = waterfilled(rows, spectrum(hessian), bits * 3 * len(hessian))
        limit = waterfilled(rows, found.values, bits * 3 * len(hessian)) - found.added * 3.5
        assert limit <= exact * (1 + 1e-9)
        assert tokens < 400 or bits < 2 or limit > 0.9 * exact


def test_a_wide_layer_takes_its_limit_from_pivots(monkeypatch):
    """Just below the exact one, with a row Hessian too, and nothing where there is no signal."""
    problem = correlated(0, tokens=400)
    both = LayerProblem(problem.weight, problem.hessian, correlated(1, n=problem.shape[1], k=problem.shape[0]).hessian)
    silent = LayerProblem(problem.weight, torch.zeros_like(problem.hessian))
    exact = [loss_limit(one, 3.0) for one in (problem, both)]
    monkeypatch.setattr("lowbit.core.limit.MOST_EIGENVALUES", 0)
    for one, expected in zip((problem, both), exact, strict=True):
        again = LayerProblem(one.weight, one.hessian.clone(), one.row_hessian)
        assert 0.9 * expected < loss_limit(again, 3.0) <= expected * (1 + 1e-9)
    assert loss_limit(silent, 3.0) == 0.0


def test_a_row_hessian_weighs_the_outputs():
    """G = c I only scales; a diagonal G is the same as rows of other sizes; any G, the same in any basis."""
    problem = gaussian(5, 9, 4, spread=3.0)
    plain, eye = loss_limit(problem, 2.0), torch.eye(5, dtype=torch.float64)
    assert math.isclose(loss_limit(LayerProblem(problem.weight, problem.hessian, 3 * eye), 2.0), 3 * plain)
    factors = torch.linspace(0.1, 4, 5, dtype=torch.float64)
    weighted = LayerProblem(problem.weight, problem.hessian, torch.diag(factors**2))
    scaled = LayerProblem(problem.weight * factors[:, None], problem.hessian)
    assert math.isclose(loss_limit(weighted, 1.5), loss_limit(scaled, 1.5), rel_tol=1e-12)


def test_scale_of_the_loss_is_that_of_the_limit():
    problem = gaussian(4, 8, 5, spread=6.0)
    assert math.isclose(
        loss_limit(LayerProblem(3 * problem.weight, 0.5 * problem.hessian), 2.0),
        4.5 * loss_limit(problem, 2.0),
        rel_tol=1e-12,
    )


@pytest.mark.parametrize("name", FEWER_PAIRS)
def test_nothing_gets_below_it_in_expectation(name):
    """Rounders and codes on Gaussian weights, at all the bits they store, side information too."""
    rounder, code = FEWER_PAIRS[name]
    statistic = FisherDiagonal() if "sensitivity" in name else SecondMoment()
    recipe = Recipe(name, statistic, NoTransform(), code, rounder)
    loss = limit = 0.0
    for seed in range(3):
        stats = quantize_layer(gaussian(6, 24, seed, spread=1.5), recipe, stream(seed, name)).stats
        loss, limit = loss + stats["loss"], limit + stats["limit"]
    assert loss > limit > 0


def test_a_good_code_comes_near():
    """Nearest values of a fine uniform grid are pi e / 6 above it, 0.254 bits; coarser ones with their loading more."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    problem = LayerProblem(weight, torch.eye(256, dtype=torch.float64))
    entropy_bits = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(1 / 8)  # of a Gaussian on a grid of step 1/8
    w_hat = (weight * 8).round() / 8
    above = bits_above(problem.loss(w_hat), loss_limit(problem, entropy_bits))
    assert above == pytest.approx(0.5 * math.log2(math.pi * math.e / 6), abs=0.02)


def test_feedback_comes_nearer_than_rounding_alone():
    problem = gaussian(6, 24, 7, spread=3.0)
    near, far = (
        quantize_layer(problem, Recipe("r", SecondMoment(), NoTransform(), CODES["3 bits"], rounder), stream(0, "r"))
        for rounder in (Ldlq(), Nearest())
    )
    assert near.stats["limit"] == far.stats["limit"]
    assert 0 < near.stats["bits_above_limit"] < far.stats["bits_above_limit"]


def test_an_invertible_change_of_coordinates_of_the_inputs_does_not_move_the_determinant_limit():
    """det(R)^2 = 1: a shear leaves the volume of the cells alone, so the limit of fine codes stays where it is."""
    problem = gaussian(24, 12, 8)
    fitted = Sheared()._draw(12, torch.Generator().manual_seed(0))
    sheared = LayerProblem(problem.weight, fitted @ problem.hessian @ fitted.T)
    assert math.isclose(loss_limit(problem, 6.0), loss_limit(sheared, 6.0), rel_tol=1e-9)


@pytest.mark.parametrize("name", ["no signal", "zero weight"])
def test_where_nothing_can_be_lost_there_is_no_distance(name):
    problem = problems(torch.float32)[name]
    recipe = Recipe(name, SecondMoment(), NoTransform(), CODES["4 bits"], Nearest())
    stats = quantize_layer(problem, recipe, stream(0, name)).stats
    assert stats["limit"] == 0.0
    assert stats["bits_above_limit"] is None


def test_half_the_logarithm():
    assert bits_above(4.0, 1.0) == 1.0
    assert bits_above(0.0, 1.0) is None
    with pytest.raises(BadRequest, match="at least 0"):
        loss_limit(gaussian(2, 3, 0), -1.0)
