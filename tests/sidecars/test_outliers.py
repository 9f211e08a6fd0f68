"""Sparse outliers: which are chosen, and that their values and their second choice are the best there are."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from laws.problems import correlated
from lowbit.codes import IntegerGrid
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.layer import quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.recipes import easyquant, optq, quantease_outlier
from lowbit.rounding import Ldlq, Nearest
from lowbit.sidecars import HardThresholding, Magnitude, RoundingCost, SparseOutliers
from lowbit.sidecars.sparse import best_values, largest_entries
from lowbit.sidecars.thresholding import thresholded

CODE = IntegerGrid(3, 16)


def heavy_tailed(seed=0, n=32, k=64):
    problem = correlated(seed, n, k)
    generator = torch.Generator().manual_seed(seed)
    return replace(problem, weight=problem.weight * torch.randn(n, k, generator=generator).double().abs() ** 1.5)


def solve(problem, side_car, rounder=None, code=CODE):
    recipe = replace(optq(), code=code, rounder=rounder or Ldlq(), side_car=side_car)
    return quantize_layer(problem, recipe, stream(0, "outliers"))


@dataclass(frozen=True)
class ByChance:
    def check(self, shape):
        pass

    def scores(self, problem):
        return torch.rand(problem.shape, generator=torch.Generator().manual_seed(5))


CRITERIA = [Magnitude(), RoundingCost(CODE, 16), RoundingCost(CODE, 16, "diagonal")]


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("sign", [1, -1])
def test_planted_outliers_are_found(criterion, sign):
    """One in every fourth group, ten times as large: as the end of its grid it costs its neighbours, not itself."""
    weight = correlated(1, 32, 64).weight.clamp(-2, 2)
    planted = torch.arange(5, 32 * 64, 64)
    weight.view(-1)[planted] = 20.0 * sign
    problem = LayerProblem(weight, torch.eye(64, dtype=torch.float64))
    found = largest_entries(criterion.scores(problem), len(planted))
    assert found.flatten().nonzero()[:, 0].tolist() == planted.tolist()


def test_the_number_is_exact_and_ties_go_to_the_first():
    mask = largest_entries(torch.ones(5, 7), 12)
    assert mask.flatten().nonzero()[:, 0].tolist() == list(range(12))
    first = SparseOutliers(Magnitude(), 0.03).start(heavy_tailed())
    assert len(first.value) == round(0.03 * 32 * 64)


def test_every_weight_apart_is_no_loss():
    assert solve(heavy_tailed(), SparseOutliers(Magnitude(), 1.0)).stats["relative_loss"] < 1e-6


def test_without_a_hessian_outliers_are_exact():
    problem = replace(heavy_tailed(), hessian=torch.eye(64, dtype=torch.float64))
    layer = solve(problem, SparseOutliers(Magnitude(), 0.05), Nearest())
    mask = layer.correction.mask()
    torch.testing.assert_close(layer.dequantize()[mask].double(), problem.weight[mask], rtol=2e-3, atol=1e-4)


def test_outliers_pay_and_pay_more_than_as_many_by_chance():
    for seed in range(3):
        problem = heavy_tailed(seed)
        plain = solve(problem, None).stats["loss"]
        chance, size, cost = (
            solve(problem, SparseOutliers(criterion, 0.01)).stats["loss"]
            for criterion in (ByChance(), Magnitude(), RoundingCost(CODE, 16))
        )
        assert max(size, cost) < chance < plain


def test_best_values_are_least_squares():
    problem, mask = heavy_tailed(), largest_entries(ByChance().scores(heavy_tailed()), 200)
    w_hat = Nearest().round(problem, CODE).w_hat
    values = best_values(problem, w_hat, torch.zeros_like(w_hat), mask)
    root = torch.linalg.cholesky(problem.hessian)
    for r in range(len(mask)):
        wanted = (problem.weight - w_hat)[r] @ root
        oracle = torch.linalg.lstsq(root[mask[r]].T, wanted).solution
        torch.testing.assert_close(values[r, mask[r]], oracle, rtol=1e-3, atol=1e-4)
    assert not bool(values[~mask].any())


@pytest.mark.parametrize("fraction", [0.01, 0.2])
def test_a_thresholding_step_never_loses(fraction):
    problem = heavy_tailed()
    w_hat = Nearest().round(problem, CODE).w_hat
    count = round(fraction * w_hat.numel())
    values = problem.weight * largest_entries(problem.weight.abs(), count) - w_hat * 0
    losses = []
    for _ in range(20):
        losses.append(problem.loss(w_hat + values))
        values, mask = thresholded(problem, w_hat, values, count)
        assert int(mask.sum()) == count
        assert not bool(values[~mask].any())
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(losses))
    assert losses[-1] < 0.99 * losses[0]


def test_thresholding_improves_on_the_first_choice():
    problem = heavy_tailed()
    first = SparseOutliers(Magnitude(), 0.02)
    once, again = solve(problem, first), solve(problem, HardThresholding(first, turns=3))
    assert again.stats["loss"] < once.stats["loss"]
    assert again.stats["bits_per_weight"] == once.stats["bits_per_weight"]


def test_the_range_of_the_grid_shrinks():
    problem = heavy_tailed()
    rest = SparseOutliers(Magnitude(), 0.01).rest(problem, SparseOutliers(Magnitude(), 0.01).start(problem))
    assert bool((CODE.fit(rest)["scale"] <= CODE.fit(problem)["scale"]).all())
    assert float(CODE.fit(rest)["scale"].mean()) < 0.9 * float(CODE.fit(problem)["scale"].mean())


def test_bits_of_the_recipes():
    shape = (1024, 4096)
    entries = round(0.01 * 1024 * 4096)
    sparse = (entries * (16 + 12) + 1024 * 13) / (1024 * 4096)
    assert bits_per_weight(quantease_outlier().fields(shape), shape) == pytest.approx(3 + 19 / 4096 + sparse, abs=1e-6)
    data_free = easyquant(fraction=0.01)
    assert bits_per_weight(data_free.fields(shape), shape) == pytest.approx(4 + 16 / 4096 + sparse, abs=1e-6)


def test_settings_out_of_range_are_refused():
    for fraction in (0.0, -0.1, 1.01):
        with pytest.raises(BadRequest, match=rf"fraction={fraction}.*above 0 and up to 1"):
            SparseOutliers(Magnitude(), fraction)
    with pytest.raises(BadRequest, match=r"fraction=0.001.*less than one weight of a \[6, 24\] layer. Use 0.0069"):
        SparseOutliers(Magnitude(), 0.001).check((6, 24))
    with pytest.raises(BadRequest, match=r"RoundingCost.group_size=16. does not divide .* \[6, 24\]"):
        SparseOutliers(RoundingCost(IntegerGrid(3), 16)).check((6, 24))
    with pytest.raises(BadRequest, match=r"IntegerGrid.group_size=16. does not divide"):
        SparseOutliers(RoundingCost(CODE)).check((6, 24))
    with pytest.raises(BadRequest, match="turns=0"):
        HardThresholding(SparseOutliers(Magnitude()), turns=0)
    with pytest.raises(BadRequest, match="column='fisher'"):
        RoundingCost(CODE, column="fisher")
    with pytest.raises(BadRequest, match=r"SparseOutliers: weights up to .* do not fit the float16"):
        SparseOutliers(Magnitude()).start(replace(heavy_tailed(), weight=heavy_tailed().weight * 1e6))
