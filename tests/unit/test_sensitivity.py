"""The sensitivity of single weights: gathered where a part looks at it, carried where maps allow, refused elsewhere;
and the numerical checks of SqueezeLLM and GWQ."""

from dataclasses import replace

import pytest
import torch

from laws.problems import correlated
from laws.statements import solve
from lowbit.codes import ClusteredLevels, IntegerGrid, Lookup, PartialBinary
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.maps import Dense, Diagonal, Permutation, compose
from lowbit.core.problem import LayerProblem
from lowbit.core.records import FittedTransform
from lowbit.recipes import make_recipe
from lowbit.rounding import Ldlq, Nearest
from lowbit.sidecars import KeptColumns, LowRank, Magnitude, Sensitivity, SparseOutliers, TwoCriteria
from lowbit.sidecars.sparse import largest_entries
from lowbit.statistics import FisherDiagonal, Isotropic, SecondMoment
from lowbit.transforms import RandomizedHadamard, StaticOrder

FISHER = Lookup(ClusteredLevels(2, "fisher"))


def minded(weight, sensitivity):
    return LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64), None, sensitivity)


def heavy_tailed(seed=0, n=16, k=128):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator, dtype=torch.float64) ** 3
    return minded(weight, torch.randn(n, k, generator=generator, dtype=torch.float64).exp().square())


def cost(problem, w_hat):
    """What the loss minds of an error, up to a factor."""
    return float((problem.sensitivity * (w_hat - problem.weight).square()).sum())


# Who gathers, who looks


def test_a_part_that_looks_needs_a_statistic_that_gathers():
    blind = replace(make_recipe("squeezellm"), statistic=SecondMoment())
    with pytest.raises(BadRequest, match=r"ClusteredLevels looks at the sens.*SecondMoment does not.*FisherDiagonal"):
        blind.check((64, 64))
    hidden = replace(make_recipe("optq"), side_car=SparseOutliers(TwoCriteria(Magnitude(), 0.1, Sensitivity()), 0.2))
    with pytest.raises(BadRequest, match="Sensitivity looks at the sensitivity"):
        hidden.check((64, 64))


def test_nothing_is_gathered_in_vain():
    with pytest.raises(BadRequest, match="FisherDiagonal gathers the sensitivity of single weights, and no part looks"):
        replace(make_recipe("optq"), statistic=FisherDiagonal()).check((64, 64))
    with pytest.raises(BadRequest, match=r"FisherDiagonal\(Isotropic\): must look at a layer's inputs"):
        FisherDiagonal(Isotropic())


@pytest.mark.parametrize("part", [FISHER, PartialBinary(0.1, "row", "fisher")], ids=lambda part: type(part).__name__)
def test_codes_without_it_are_refused(part):
    with pytest.raises(BadRequest, match=r"needs the sensitivity of single weights\. Use statistic=FisherDiagonal"):
        part.fit(replace(correlated(0), sensitivity=None))


def test_rotated_codes_are_refused_and_side_cars_beside_them_are_not():
    problem = correlated(0, 8, 32)
    rotated = replace(make_recipe("squeezellm", {"outliers": 0.02}), transform=RandomizedHadamard())
    with pytest.raises(BadRequest, match=r"ClusteredLevels needs.*no transform that mixes weights"):
        solve(rotated, problem)
    assert solve(replace(rotated, code=IntegerGrid(3)), problem).correction is not None


def test_visiting_in_order_changes_no_cluster():
    """Rounded to nearest, whatever the order: the sensitivities have moved with their weights."""
    plain = make_recipe("squeezellm", {"outliers": 0.02})
    problem = correlated(0, 8, 32)
    ordered = replace(plain, transform=StaticOrder())
    assert torch.equal(solve(ordered, problem).dequantize(), solve(plain, problem).dequantize())


def test_maps_that_keep_weights_apart_carry_it_as_squared_gradients():
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    scales = [torch.rand(d, generator=generator).double() + 0.5 for d in (6, 8)]
    order = Permutation(torch.randperm(8, generator=generator))
    fitted = FittedTransform(Diagonal(scales[0]), compose(order, Diagonal(scales[1])))
    problem = minded(torch.randn(6, 8, generator=generator, dtype=torch.float64), g.square())
    # W' = L W R^-1, so the gradient by W' is L^-T g R^T.
    expected = fitted.right.apply(g / scales[0][:, None]).square()
    torch.testing.assert_close(fitted.forward(problem).sensitivity, expected)
    mixed = FittedTransform(right=Dense(torch.eye(8, dtype=torch.float64), is_orthogonal=True))
    assert mixed.forward(problem).sensitivity is None


def test_what_is_kept_apart_attracts_no_level():
    problem = heavy_tailed()
    outliers = SparseOutliers(Sensitivity(), 0.05)
    rest = outliers.rest(problem, outliers.start(problem))
    kept = outliers.start(problem).mask()
    assert not rest.sensitivity[kept].any()
    assert float(rest.weight[kept].abs().max()) < 1e-3 * float(problem.weight.abs().max())
    levels = FISHER.fit(rest)["table"]
    moved = replace(rest, weight=rest.weight.masked_fill(kept, 5.0))
    assert float((FISHER.fit(moved)["table"] - levels).abs().max()) < 0.01 * float(levels.abs().max())
    columns = KeptColumns(IntegerGrid(3), 0.5)
    first = columns.start(problem)
    assert not columns.rest(problem, first).sensitivity[:, first.index].any()


# SqueezeLLM


def test_constant_sensitivity_is_plain_clustering():
    problem = heavy_tailed()
    alike = replace(problem, sensitivity=torch.full_like(problem.weight, 7.0))
    plain = Nearest().round(problem, Lookup(ClusteredLevels(2, "none"))).w_hat
    assert torch.equal(Nearest().round(alike, FISHER).w_hat, plain)


def test_as_many_sensitive_weights_as_levels_are_met():
    """The loss minds four weights of every row: they come out as they are, in float16."""
    problem = heavy_tailed()
    few = torch.zeros_like(problem.weight)
    few[:, [3, 40, 77, 100]] = 1
    w_hat = Nearest().round(replace(problem, sensitivity=few), FISHER).w_hat
    error = (w_hat - problem.weight)[:, [3, 40, 77, 100]]
    assert float(error.abs().max()) < 1e-2 * float(problem.weight.abs().max())


def test_as_many_levels_as_weights_lose_nothing():
    problem = heavy_tailed(k=8)
    w_hat = Nearest().round(problem, Lookup(ClusteredLevels(3, "fisher"))).w_hat
    assert torch.equal(w_hat, problem.weight.half().double())


@pytest.mark.parametrize("seed", range(4))
def test_weighted_clusters_beat_plain_ones_beat_grids_and_outliers_help(seed):
    problem = heavy_tailed(seed)
    codes = (FISHER, Lookup(ClusteredLevels(2, "none")), IntegerGrid(2))
    costs = [cost(problem, Nearest().round(problem, code).w_hat) for code in codes]
    assert costs == sorted(costs)
    sparse = solve(make_recipe("squeezellm", {"bits": 2, "outliers": 0.01, "sensitive": 0.005}), problem)
    dense = solve(make_recipe("squeezellm", {"bits": 2, "outliers": 0, "sensitive": 0}), problem)
    assert cost(problem, sparse.dequantize()) < cost(problem, dense.dequantize())
    assert sparse.stats["loss"] < dense.stats["loss"]


def test_sensitive_weights_first_then_the_largest():
    problem = heavy_tailed()
    criterion = make_recipe("squeezellm").side_car.criterion
    count = round(0.005 * problem.weight.numel())
    mask = largest_entries(criterion.scores(problem), count)
    first = largest_entries(problem.sensitivity, round(0.0005 * problem.weight.numel()))
    assert int(mask.sum()) == count
    assert bool(mask[first].all())
    others = problem.weight.abs().masked_fill(first, 0)
    assert float(others[mask & ~first].min()) >= float(others[~mask].max())


def test_dense_and_sparse_hold_the_weights_between_them():
    problem = heavy_tailed()
    outliers = SparseOutliers(TwoCriteria(Sensitivity(), 0.01, Magnitude()), 0.05)
    first = outliers.start(problem)
    assert torch.equal(outliers.rest(problem, first).weight + first.dense(), problem.weight)


def test_bits_of_squeezellm():
    shape = (4096, 4096)
    dense = bits_per_weight(make_recipe("squeezellm", {"outliers": 0, "sensitive": 0}).fields(shape), shape)
    assert dense == 3 + 16 * 8 / 4096
    sparse = bits_per_weight(make_recipe("squeezellm").fields(shape), shape)
    assert sparse == pytest.approx(dense + 0.005 * (16 + 12) + 13 / 4096, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outliers": -0.1}, r"outliers=-0.1.*must not be negative"),
        ({"importance": "diagonal"}, r'sensitive=0.0005.*takes importance="fisher"'),
        ({"outliers": 0.9, "sensitive": 0.2}, r"fraction=1.1"),
        ({"importance": "trace"}, "importance must be .*fisher"),
    ],
)
def test_settings_of_squeezellm_out_of_range_are_refused(settings, message):
    with pytest.raises(BadRequest, match=message):
        make_recipe("squeezellm", settings)


# GWQ


def test_all_weights_kept_is_no_loss():
    problem = heavy_tailed()
    layer = solve(make_recipe("gwq", {"fraction": 1.0}), problem)
    torch.testing.assert_close(layer.dequantize().double(), problem.weight, rtol=1e-3, atol=1e-7)


def test_the_loss_may_be_scaled_without_changing_the_choice():
    problem = heavy_tailed()
    scores = (Sensitivity().scores(replace(problem, sensitivity=c * problem.sensitivity)) for c in (1.0, 1e-6, 1e6))
    one, small, large = (largest_entries(score, 20) for score in scores)
    assert torch.equal(one, small)
    assert torch.equal(one, large)
    assert int(one.sum()) == 20


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_large_gradients_are_worth_more_than_others(seed):
    """Weighted by squared gradients, keeping the largest apart gains more than keeping as many by chance."""
    problem = heavy_tailed(seed)
    layer = solve(make_recipe("gwq", {"fraction": 0.05}), problem)
    chance = replace(problem, sensitivity=torch.rand(problem.shape, generator=torch.Generator().manual_seed(seed)))
    other = solve(make_recipe("gwq", {"fraction": 0.05}), chance)
    assert cost(problem, layer.dequantize()) < 0.8 * cost(problem, other.dequantize())


def test_outliers_stretch_no_range():
    problem = heavy_tailed()
    recipe = make_recipe("gwq", {"fraction": 0.05})
    rest = recipe.side_car.rest(problem, recipe.side_car.start(problem))
    before, after = (one.weight.view(16, -1, 16).abs().amax(-1) for one in (problem, rest))
    assert bool((after <= before).all())
    assert bool((after < before).any())


def test_bits_of_gwq():
    shape = (4096, 4096)
    expected = 3 + 19 / 16 + 0.01 * 28 + 13 / 4096
    assert bits_per_weight(make_recipe("gwq").fields(shape), shape) == pytest.approx(expected, abs=1e-6)


# LQ-LoRA


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_sensitivity_of_rows_times_columns_is_met_by_a_weighted_decomposition(rank):
    """Eckart-Young in D_row E D_col, where the root of F is their product."""
    generator = torch.Generator().manual_seed(rank)
    error = torch.randn(16, 24, generator=generator, dtype=torch.float64)
    rows, columns = (torch.randn(d, generator=generator).double().exp() for d in (16, 24))
    problem = LayerProblem(error, columns.square().diag(), rows.square().diag(), (rows[:, None] * columns).square())
    side_car = LowRank(rank, "fisher", first="codes")
    fitted = side_car.fit(problem, side_car.start(problem), torch.zeros_like(error))
    remains = cost(problem, fitted.dense())
    best = float(torch.linalg.svdvals(rows[:, None] * error * columns)[rank:].square().sum())
    assert remains == pytest.approx(best, rel=1e-3)
    plain = LowRank(rank, "diagonal", first="codes").fit(problem, side_car.start(problem), torch.zeros_like(error))
    assert remains < cost(problem, plain.dense())


def test_rows_that_do_not_matter_stay_finite():
    problem = heavy_tailed()
    sensitivity = problem.sensitivity.clone()
    sensitivity[2], sensitivity[:, 5] = 0, 0
    for unminded in (sensitivity, torch.zeros_like(sensitivity)):
        for recipe in ("squeezellm", "gwq", "lq_lora"):
            settings = {"metric": "fisher", "rank": 2} if recipe == "lq_lora" else {}
            layer = solve(make_recipe(recipe, settings), replace(problem, sensitivity=unminded))
            assert bool(torch.isfinite(layer.dequantize()).all())


def test_feedback_works_on_clusters_by_sensitivity():
    problem = correlated(1, 16, 48)
    losses = [problem.loss(rounder.round(problem, FISHER).w_hat) for rounder in (Ldlq(), Nearest())]
    assert losses[0] < losses[1]
