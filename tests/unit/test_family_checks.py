"""Numerical checks that the papers of the weight formats suggest, where no other file has them."""

from dataclasses import dataclass, replace

import pytest
import torch

from laws.problems import correlated
from laws.statements import solve
from lowbit.codes import (
    BinaryCoding,
    ClusteredLevels,
    DualGrained,
    HessianRange,
    IntegerGrid,
    Lookup,
    LowRankLevels,
    MinMax,
    MixedWidths,
    PartialBinary,
    ScaledLevels,
    Scales,
    SearchedRange,
    SharedLevels,
    VectorCodebook,
)
from lowbit.codes.kmeans import _drawn, k_means
from lowbit.codes.levels import level_set
from lowbit.core.fields import bits_per_weight
from lowbit.core.problem import LayerProblem
from lowbit.kernels.nearest import nearest
from lowbit.recipes import make_recipe
from lowbit.rounding import Ldlq, Nearest
from lowbit.sidecars import Magnitude, Sensitivity
from lowbit.sidecars.sparse import largest_entries
from lowbit.statistics import FisherDiagonal
from lowbit.statistics.fisher import Squares


def gaussian(n=16, k=512, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student(freedom, n=16, k=4096):
    generator = torch.Generator().manual_seed(1)
    chi = torch.randn(freedom, n, k, generator=generator, dtype=torch.float64).square().sum(0)
    return gaussian(n, k) / (chi / freedom).sqrt() / (freedom / (freedom - 2)) ** 0.5


def plain(weight):
    return LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64))


def error(weight, code):
    return float((Nearest().round(plain(weight), code).w_hat - weight).square().mean())


def searched(levels, steps=90):
    return Lookup(ScaledLevels(levels, Scales("float32"), SearchedRange(0.1, steps, 2.0)))


# Ranges (EasyQuant): where a symmetric grid of a Gaussian ends


@pytest.mark.parametrize(("bits", "half_range", "least"), [(4, 2.45, 0.01285), (3, 1.95, 0.0468), (2, 1.20, 0.190)])
def test_the_best_range_of_a_gaussian(bits, half_range, least):
    top = 2 ** (bits - 1) - 1
    code = replace(searched(",".join(map(str, range(-top, top + 1))), 200), group_size="tensor")
    weight = gaussian(200, 500)
    side = code.fit(plain(weight))
    assert float(side["scale"].mean() * top) == pytest.approx(half_range, rel=0.06)
    assert error(weight, code) == pytest.approx(least, rel=0.03)


def test_a_search_of_a_hundred_steps_is_nearly_one_of_two_thousand():
    weight = student(5, 8, 512)
    few, many = (error(weight, IntegerGrid(4, range=SearchedRange(0.2, steps, 2.0))) for steps in (80, 2000))
    assert many <= few < 1.01 * many


def test_a_searched_range_gains_more_once_outliers_are_apart():
    weight = gaussian(32, 128)
    weight.view(-1)[::97] *= 9
    recipe = make_recipe("easyquant", {"fraction": 0.011})
    layer = solve(recipe, plain(weight))
    whole = error(weight, recipe.code)
    assert float((layer.dequantize() - weight).square().mean()) < 0.2 * whole
    assert error(weight, recipe.code) < error(weight, IntegerGrid(4, symmetric=True))


# Floats, dINT, powers


def test_six_bit_floats_mind_tails_less_than_integers():
    """With the largest magnitude for an end: as measured on Gaussian and t(4) weights in rows of 4096."""
    found = {
        (kind, name): error(weight, code) / float(weight.square().mean())
        for kind, weight in (("gaussian", gaussian(16, 4096)), ("t4", student(4)))
        for name, code in (
            ("fp6", Lookup(ScaledLevels("e3m2"))),
            ("int6", Lookup(ScaledLevels(",".join(map(str, range(-31, 32)))))),
            ("int4", Lookup(ScaledLevels(",".join(map(str, range(-7, 8)))), 128)),
        )
    }
    assert found["gaussian", "int6"] < found["gaussian", "fp6"] < found["gaussian", "int4"]
    assert found["t4", "fp6"] < found["t4", "int6"] < found["t4", "int4"]
    assert found["gaussian", "fp6"] == pytest.approx(0.00275, rel=0.1)
    assert found["gaussian", "int4"] == pytest.approx(0.01365, rel=0.05)
    assert found["t4", "fp6"] == pytest.approx(found["gaussian", "fp6"], rel=0.15)


def test_a_bias_for_each_row_serves_rows_of_many_sizes():
    weight = gaussian(32, 128) * gaussian(32, 1, seed=1).mul(2).exp()
    relative = []
    for size in ("row", "tensor"):
        w_hat = Nearest().round(plain(weight), Lookup(ScaledLevels("e2m1"), size)).w_hat
        relative.append(float(((w_hat - weight).square().mean(1) / weight.square().mean(1)).mean()))
    assert relative[0] < 0.1 * relative[1]


def test_halves_near_zero_lower_the_errors_of_small_weights_and_raise_the_others():
    weight = gaussian(20, 1000)
    parts = {}
    for name in ("int4", "dint4"):
        code = Lookup(ScaledLevels(name, Scales("float32")), "tensor")
        rounded = Nearest().round(plain(weight), code)
        squares, small = (rounded.w_hat - weight).square(), weight.abs() < weight.abs().max() / 15
        parts[name] = float(squares[small].sum()), float(squares[~small].sum())
        assert sum(parts[name]) == pytest.approx(float(squares.sum()))
    assert parts["dint4"][0] < 0.5 * parts["int4"][0]
    assert sum(parts["dint4"]) < sum(parts["int4"])


def test_no_power_gets_below_the_best_levels_there_are():
    """Lloyd and Max bound every grid of as many levels from below."""
    weight = gaussian(4, 1000)
    best = error(weight, Lookup(ClusteredLevels(3, "none")))
    assert all(best < error(weight, searched(f"power3:{power}")) for power in (0.5, 0.7, 1))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_normal_levels_hold_zero_and_both_ends(bits):
    levels = level_set(f"nf{bits}")
    assert len(set(levels)) == 2**bits
    assert {-1.0, 0.0, 1.0} <= set(levels)


# Binary planes


def test_how_often_planes_are_empty():
    """P(b1 = 0) = 0.66 and P(b2 = 0) = 0.43 for weights of 1.2 steps, which is what skipping zeros saves."""
    weight = 1.2 * gaussian(1, 200000)
    levels = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    nearest_level = (weight[..., None] - levels).abs().argmin(-1)
    two, minus_one = nearest_level >= 2, (nearest_level == 0) | (nearest_level == 2)
    assert float(1 - two.double().mean()) == pytest.approx(0.66, abs=0.01)
    assert float(1 - minus_one.double().mean()) == pytest.approx(0.43, abs=0.01)
    code = BinaryCoding(2)
    side = {"planes": torch.tensor([[[2.0, -1.0]]], dtype=torch.float64)}
    assert code.of(side, torch.tensor([0])).flatten().tolist() == [0, 2, -1, 1]


def test_salience_by_equal_costs_is_magnitude():
    weight = gaussian(8, 64)
    by = [Nearest().round(plain(weight), PartialBinary(0.1, "row", how)).w_hat for how in ("conditional", "none")]
    assert torch.equal(*by)


# Whole-number scales and widths


def test_dual_grain_of_ones_is_the_grid_of_a_row():
    """k = 1 everywhere: value = scale (q - z); and no k takes codes out of eight bits that it does not clamp."""
    tables = DualGrained(4, MinMax())
    ones = torch.ones(2, 3, dtype=torch.float64)
    side = {"scale": torch.tensor([[0.5], [0.25]]).double(), "group_scale": ones, "zero": 7 * ones}
    grid = torch.arange(16).double() - 7
    expected = side["scale"][..., None] * grid
    assert torch.equal(tables.of(side, torch.arange(3)), expected.expand(2, 3, 16))
    for zero in range(16):
        most = 127 // max(zero, 15 - zero)
        assert 8 <= most <= 15
        for factor, whole in ((most, True), (most + 1, False)):
            one = {"scale": ones[:1, :1], "group_scale": factor * ones[:1, :1], "zero": zero * ones[:1, :1]}
            levels = tables.of(one, torch.tensor([0])).flatten()
            assert float(levels.abs().max()) <= 127
            assert (len(levels.unique()) == 16) == whole


def test_as_many_bits_are_exchanged_as_pay():
    """The number found is the best of all, none among them."""
    for seed in range(4):
        problem = correlated(seed, 8, 64)
        tables = MixedWidths(2, HessianRange(steps=10))
        groups = problem.weight.view(8, 8, 8)
        costs = tables.costs(problem).view(8, 8).expand_as(groups)
        width = tables.fit(groups, costs)["width"]
        spent = {}
        for bits in (1, 2, 3):
            scale, zero = tables._fit(groups, costs, bits)
            side = {"scale": scale, "zero": zero, "width": torch.full((8,), bits)}
            levels = tables.of(side, torch.arange(8))
            nearest_level = (groups[..., None] - levels[:, :, None]).abs().amin(-1)
            spent[bits] = (costs * nearest_level.square()).sum((0, 2))
        order = (costs * groups.square()).sum((0, 2)).argsort(descending=True, stable=True)

        def total(n, order=order, spent=spent):
            parts = spent[3][order[:n]], spent[2][order[n : 8 - n]], spent[1][order[8 - n :]]
            return float(sum(part.sum() for part in parts))

        taken = int((width == 3).sum())
        assert int((width == 1).sum()) == taken
        assert total(taken) == pytest.approx(min(total(n) for n in range(5)))


# Tables


def test_equidistant_directions_of_rank_one_are_affine_grids():
    tables = LowRankLevels(2, 1)
    numbers = torch.tensor([[[0.3, -0.1], [2.0, 0.5]]], dtype=torch.float64)
    side = {"basis": torch.arange(4)[None] / 3.0, "coefficients": numbers}
    expected = numbers[..., 1:] + numbers[..., :1] * torch.arange(4) / 3
    torch.testing.assert_close(tables.of(side, torch.arange(2)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_more_shared_tables_never_cost_more(seed):
    weight = gaussian(24, 64, seed) * gaussian(24, 1, seed + 9).exp()
    errors = [error(weight, Lookup(SharedLevels(2, tables, "none"))) for tables in (1, 2, 4, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(error(weight, Lookup(ClusteredLevels(2, "none"))), rel=1e-3)


# Vectors


@dataclass(frozen=True)
class Uniform(VectorCodebook):
    """Whose one codebook is an integer grid."""

    def _fit_group(self, weight, importance):
        return {"codebook": 0.5 * (torch.arange(16, dtype=weight.dtype)[:, None] - 7)}


@dataclass(frozen=True)
class Given(IntegerGrid):
    def fit(self, problem):
        ones = torch.ones(problem.shape[0], 1, dtype=problem.weight.dtype)
        return {"scale": 0.5 * ones, "zero": 7 * ones}


@pytest.mark.parametrize("along", ["inputs", "outputs"])
def test_vectors_of_one_weight_on_a_uniform_codebook_are_optq(along):
    problem = correlated(0, 16, 48)
    ours = Ldlq().round(problem, Uniform(1, 4, along=along))
    assert torch.equal(ours.w_hat, Ldlq().round(problem, Given(4)).w_hat)


def test_clustering_never_ends_above_its_start():
    x, generator = gaussian(2000, 2), torch.Generator().manual_seed(0)
    weight = gaussian(2000, 2, 1).exp()
    first = _drawn(x, weight, 32, generator)
    costs = [float(nearest(x, weight, book)[1].sum()) for book in (first, k_means(x, weight, 32))]
    assert costs[1] < costs[0]


def test_longer_vectors_lose_less_at_the_same_bits():
    """Two bits, correlated inputs; and feedback is worth more than length."""
    problem = correlated(0, 256, 64)
    for along in ("inputs", "outputs"):
        codes = [VectorCodebook(d, 2 * d, along=along) for d in (1, 2, 4)]
        fed, alone = (
            [problem.loss(rounder.round(problem, code).w_hat) for code in codes] for rounder in (Ldlq(), Nearest())
        )
        assert fed == sorted(fed, reverse=True)
        assert alone == sorted(alone, reverse=True)
        assert all(a < 0.8 * b for a, b in zip(fed, alone, strict=True))


def test_two_bits_of_vptq_on_a_model_of_seven_billions():
    """12 bits for 6 outputs, 2.02 bits as published: over the layers of a block, padded to whole vectors."""
    layers = [((4098, 4096), 4), ((11010, 4096), 2), ((4098, 11008), 1)]
    recipe = make_recipe("vptq", {"dimension": 6, "index_bits": 12})
    stored = sum(count * bits_per_weight(recipe.fields(shape), shape) * shape[0] * shape[1] for shape, count in layers)
    assert stored / sum(count * n * k for (n, k), count in layers) == pytest.approx(2.02, abs=0.01)


# Sensitivity: against the loss itself


@dataclass(frozen=True, eq=False)
class Logistic:
    """Classes drawn from a softmax of independent inputs: the model is true, so its Fisher information is the Hessian
    of its loss."""

    weight: torch.Tensor
    x: torch.Tensor

    @classmethod
    def drawn(cls, seed):
        sizes = torch.logspace(-1, 1, 24, dtype=torch.float64)[
            torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        ]
        return cls(gaussian(4, 24, seed) / 8, gaussian(4000, 24, seed + 1) * sizes)

    def loss(self, weight):
        """Cross entropy to the true model's own probabilities, less its least."""
        true, tried = ((self.x @ w.T).log_softmax(1) for w in (self.weight, weight))
        return float((true.exp() * (true - tried)).sum(1).mean())

    def sensitivity(self):
        """By the statistic, from the gradient of each sample's loss for a label that is drawn."""
        probabilities = (self.x @ self.weight.T).softmax(1)
        labels = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(7))[:, 0]
        pull = probabilities - torch.eye(4, dtype=torch.float64)[labels]
        statistic = FisherDiagonal()
        state = statistic.update(statistic.init(24), {"inputs": self.x})
        state = statistic.update(state, {"weight_gradients": pull[:, :, None] * self.x[:, None, :]})
        assert isinstance(state, Squares)
        return statistic.problem(state, self.weight)[0].sensitivity


@pytest.mark.parametrize("seed", range(3))
def test_half_the_sensitivity_times_squared_changes_is_what_the_loss_gains(seed):
    model = Logistic.drawn(seed)
    F = model.sensitivity()
    for row, column in ((0, 3), (1, 10), (2, 17), (3, 23)):
        changed = model.weight.clone()
        changed[row, column] += 0.1 / float(F[row, column].sqrt())
        assert model.loss(changed) == pytest.approx(0.005, rel=0.15)


def test_keeping_what_the_loss_minds_is_worth_more_than_chance():
    """Two-bit weights but for one in ten: chosen by gradient or by size, not by lot."""
    by_gradient, by_size, by_chance = 0.0, 0.0, 0.0
    for seed in range(4):
        model = Logistic.drawn(seed)
        problem = replace(plain(model.weight), sensitivity=model.sensitivity())
        w_hat = Nearest().round(problem, IntegerGrid(2)).w_hat

        def lost(scores, model=model, w_hat=w_hat):
            return model.loss(torch.where(largest_entries(scores, 10), model.weight, w_hat))

        by_gradient += lost(Sensitivity().scores(problem))
        by_size += lost(Magnitude().scores(problem))
        lots = [torch.rand(4, 24, generator=torch.Generator().manual_seed(lot)) for lot in range(8)]
        by_chance += sum(lost(lot) for lot in lots) / len(lots)
    assert by_gradient < 0.8 * by_chance
    assert by_size < by_chance
