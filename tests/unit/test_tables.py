"""Tables found in the weights: the numerical checks of SqueezeLLM, JLCM, LCQ, GPTQT, DB-LLM, and exact k-means."""

import itertools
from dataclasses import replace

import pytest
import torch

from laws.problems import correlated
from laws.statements import close, solve
from lowbit.codes import (
    BinaryCoding,
    ClusteredLevels,
    IntegerGrid,
    LeastSquares,
    Lookup,
    LowRankLevels,
    ScaledLevels,
    Scales,
    SharedLevels,
    TwoStep,
)
from lowbit.codes.binary import patterns, step_sets
from lowbit.codes.kmeans import k_means
from lowbit.core.errors import BadRequest
from lowbit.core.problem import LayerProblem
from lowbit.kernels.segments import best_levels
from lowbit.recipes import make_recipe
from lowbit.rounding import Ldlq, Nearest

EVERY = torch.arange(24)


def cost(x, weight, levels):
    return float((weight * (x[:, None] - levels).square().amin(1)).sum())


def gaussian(n=8, k=64, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(weight):
    return LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64))


def error(weight, code):
    return float((Nearest().round(plain(weight), code).w_hat - weight).square().sum())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_best_levels_are_the_best_of_all_partitions(count):
    x, weight = gaussian(3, 9), gaussian(3, 9, seed=1).square()
    for row, mass, levels in zip(x, weight, best_levels(x, weight, count), strict=True):
        points, order = row.sort()
        cuts = ((0, *inner, 9) for inner in itertools.combinations(range(1, 9), count - 1))
        runs = ([slice(a, b) for a, b in itertools.pairwise(cut)] for cut in cuts)
        means = (
            torch.stack([torch.sum(points[r] * mass[order][r]) / mass[order][r].sum() for r in run]) for run in runs
        )
        least = min(cost(points, mass[order], one) for one in means)
        assert cost(row, mass, levels) == pytest.approx(least, rel=1e-9)


def test_lloyd_is_never_below_exact_and_near_it():
    x = gaussian(1, 600)
    weight = gaussian(1, 600, seed=2).square()
    exact = cost(x[0], weight[0], best_levels(x, weight, 8)[0])
    lloyd = cost(x[0], weight[0], k_means(x[0][:, None], weight[0][:, None], 8)[:, 0])
    assert exact <= lloyd * (1 + 1e-12)
    assert lloyd <= 1.3 * exact


def test_merging_neighbours_costs_next_to_nothing():
    x = gaussian(1, 20000)
    ones = torch.ones_like(x)
    merged = best_levels(x, ones, 4)[0]
    assert cost(x[0], ones[0], merged) / 20000 == pytest.approx(0.1175, rel=0.03)  # Lloyd and Max for a Gaussian


def test_points_that_cost_nothing_attract_no_level():
    x, weight = torch.tensor([[0.0, 1.0, 5.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert best_levels(x, weight, 2)[0].tolist() == [0.0, 1.0]


def test_empty_and_equal_cells_repeat_a_level():
    levels = best_levels(torch.tensor([[2.0, 2.0, 2.0]]), torch.ones(1, 3), 8)
    assert levels.tolist() == [[2.0] * 8]
    assert best_levels(torch.zeros(1, 3), torch.zeros(1, 3), 2).tolist() == [[0.0, 0.0]]


def test_as_many_levels_as_weights_leave_no_error():
    weight = gaussian(4, 16).half().double()
    assert error(weight, Lookup(ClusteredLevels(4, "none"))) == 0


def test_weighted_clusters_serve_their_weights():
    """Weighted k-means <= plain k-means <= the integer grid, where columns' costs differ and rows have tails."""
    problem = correlated(0, 8, 64)
    problem = replace(problem, weight=problem.weight**3)
    diagonal = LayerProblem(problem.weight, problem.hessian.diagonal().diag())
    codes = (Lookup(ClusteredLevels(3, "diagonal")), Lookup(ClusteredLevels(3, "none")), IntegerGrid(3))
    losses = [diagonal.loss(Nearest().round(diagonal, code).w_hat) for code in codes]
    assert losses == sorted(losses)


def test_shared_tables_lie_between_one_for_all_and_one_for_each():
    weight = gaussian(16, 32) * torch.tensor([1.0, 3.0, 9.0, 27.0], dtype=torch.float64).repeat(4)[:, None]
    one, few, each = (error(weight, Lookup(SharedLevels(2, tables, "none"))) for tables in (1, 4, 16))
    assert one == pytest.approx(error(weight, Lookup(ClusteredLevels(2, "none"), "tensor")), rel=1e-6)
    assert each == pytest.approx(error(weight, Lookup(ClusteredLevels(2, "none"))), rel=1e-6)
    assert each < few < 0.7 * one


def test_rows_of_a_size_share_a_table():
    weight = gaussian(16, 64) * torch.tensor([1.0, 8.0], dtype=torch.float64).repeat(8)[:, None]
    owner = Lookup(SharedLevels(3, 2, "none")).fit(plain(weight))["table_of_row"]
    assert owner[::2].unique().numel() == owner[1::2].unique().numel() == 1
    assert owner[0] != owner[1]


def test_low_rank_reaches_free_tables_and_gains_with_every_rank():
    weight = torch.cat((gaussian(8, 64), gaussian(8, 64, 1).square()))
    errors = [error(weight, Lookup(LowRankLevels(2, rank, importance="none"), 16)) for rank in (1, 2, 3)]
    free = error(weight, Lookup(ClusteredLevels(2, "none"), 16))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == pytest.approx(free, rel=0.02)
    assert errors[0] < error(weight, IntegerGrid(2, 16, scales="static"))


def test_low_rank_tables_have_that_rank():
    code = Lookup(LowRankLevels(3, 2, importance="none"), 8)
    side = code.fit(plain(gaussian()))
    tables = code.tables.of(side, torch.arange(8)).flatten(0, 1)
    values = torch.linalg.svdvals(tables - side["coefficients"][..., -1:].flatten(0, 1))
    assert float(values[2] / values[0]) < 1e-9


def test_step_sets_are_those_counted():
    """225 pairs and 591 triples of a 5-bit grid, 44 triples of 4 bits."""
    assert [len(step_sets(*sizes)) for sizes in ((2, 5), (3, 5), (3, 4))] == [225, 591, 44]
    assert step_sets(3, 5)[-1] == (1, 2, 4)


def test_two_step_levels_are_levels_of_the_finer_grid_and_symmetric():
    weight = gaussian()
    code = Lookup(BinaryCoding(3, "signs", TwoStep(5), "none"))
    side = code.fit(plain(weight))
    levels = code.tables.of(side, torch.zeros(1, dtype=torch.int64))[:, 0].sort()[0]
    offset = side["planes"][:, 0, -1:]
    torch.testing.assert_close(levels - offset, (offset - levels).flip(1))
    steps = side["planes"][:, 0, :-1]
    whole = steps / steps.amin(1, keepdim=True)
    allowed = torch.tensor(step_sets(3, 5)).double()
    allowed = allowed / allowed.amin(1, keepdim=True)
    assert float((whole[:, None] - allowed).abs().amax(-1).amin(1).max()) < 0.02


def test_two_step_with_no_finer_grid_is_the_uniform_grid():
    weight = gaussian()
    ours = error(weight, Lookup(BinaryCoding(3, "signs", TwoStep(3, steps=1), "none")))
    ends = (weight.amin(1), weight.amax(1))
    grid = [torch.linspace(float(low), float(high), 8, dtype=torch.float64) for low, high in zip(*ends, strict=True)]
    uniform = sum(cost(row, torch.ones(64), levels) for row, levels in zip(weight, grid, strict=True))
    assert ours == pytest.approx(uniform, rel=0.01)


def test_searching_includes_the_uniform_code():
    weight = gaussian()
    searched, uniform = (error(weight, Lookup(BinaryCoding(3, "signs", TwoStep(b), "none"))) for b in (5, 3))
    assert searched <= uniform
    fitted = error(weight, Lookup(BinaryCoding(3, "signs", LeastSquares(), "none")))
    assert error(weight, Lookup(BinaryCoding(3, "signs", LeastSquares(0), "none"))) >= fitted


def test_gptqt_beats_optq_on_bells_most_of_the_time():
    wins = 0
    for seed in range(6):
        problem = correlated(seed, 16, 48)
        losses = [problem.loss(solve(make_recipe(*one), problem).dequantize()) for one in GPTQT_AGAINST_OPTQ]
        wins += losses[0] < losses[1]
    assert wins >= 4


GPTQT_AGAINST_OPTQ = (("gptqt", {"bits": 3, "fine_bits": 4}), ("optq", {"bits": 3}))


def test_dual_planes_start_from_the_grid_with_zero_and_improve():
    """-s 0 s 2s is the nearest of four levels; least squares never makes it worse."""
    weight = gaussian(8, 64)
    start = Lookup(BinaryCoding(2, "zero one", LeastSquares(0)), 16)
    levels = start.tables.of(start.fit(plain(weight)), torch.arange(4))
    step = levels.abs().amax(-1, keepdim=True) / 2
    signed = levels / step * levels.sum(-1, keepdim=True).sign()
    torch.testing.assert_close(signed.sort()[0], torch.tensor([-1.0, 0, 1, 2]).double().expand(8, 4, 4))
    grid = Lookup(ScaledLevels("-1, 0, 1, 2", Scales("float16")), 16)
    assert error(weight, start) == pytest.approx(error(weight, grid), rel=1e-3)
    assert error(weight, Lookup(BinaryCoding(2), 16)) < error(weight, start)


def test_planes_decode_as_sums():
    code = Lookup(BinaryCoding(3, "signs", LeastSquares(2)), 8)
    rounded = Ldlq().round(correlated(0), code)
    signs = 2 * (rounded.codes[..., None].int() >> torch.arange(3) & 1) - 1
    theta = rounded.side["planes"].repeat_interleave(8, 1)
    assert close((signs * theta[..., :3]).sum(-1) + theta[..., 3], rounded.w_hat, 1e-12)
    assert patterns(2, "zero one").tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


BAD = [
    (lambda: ClusteredLevels(9), r"ClusteredLevels\(bits=9\): must be 1 to 8"),
    (lambda: ClusteredLevels(3, "trace"), "importance='trace'.*diagonal"),
    (lambda: SharedLevels(tables=0), "tables=0.*1 to 256"),
    (lambda: SharedLevels().fields(4, 3), "group_size='row'"),
    (lambda: LowRankLevels(2, 4), "rank=4.*1 to 3"),
    (lambda: LowRankLevels(turns=-1), "turns=-1.*at least 0"),
    (lambda: BinaryCoding(7), "planes=7.*1 to 6"),
    (lambda: BinaryCoding(digits="trits"), 'digits=.trits.*"signs"'),
    (lambda: LeastSquares(-1), "turns=-1"),
    (lambda: TwoStep(7), "fine_bits=7.*1 to 6"),
    (lambda: TwoStep(shortlist=0), "shortlist=0"),
    (lambda: TwoStep(steps=0), "steps=0"),
    (lambda: Lookup(BinaryCoding(3, "zero one", TwoStep())).fit(correlated(0)), 'needs digits "signs"'),
    (lambda: Lookup(BinaryCoding(3, "signs", TwoStep(2))).fit(correlated(0)), "as many fine bits as planes"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings_are_refused(make, message):
    with pytest.raises(BadRequest, match=message):
        make()


TABLES = (ClusteredLevels(3), SharedLevels(2, 2), LowRankLevels(2, 1), BinaryCoding(2), BinaryCoding(2, "signs"))


@pytest.mark.parametrize("tables", TABLES, ids=str)
def test_collapsing_tables_stay_finite_and_large_weights_are_refused(tables):
    weight = torch.zeros(4, 8)
    weight[1], weight[2, 3], weight[3] = 1e-30, 60000.0, torch.linspace(-1e-7, 1e-7, 8)
    for rounder in (Nearest(), Ldlq()):
        rounded = rounder.round(LayerProblem(weight, torch.eye(8).double()), Lookup(tables))
        assert bool(torch.isfinite(rounded.w_hat).all())
        assert all(bool(torch.isfinite(tensor).all()) for tensor in rounded.side.values())
    with pytest.raises(BadRequest, match=r"weights up to .* do not fit the float16"):
        Lookup(tables).fit(LayerProblem(torch.full((4, 8), 1e6), torch.eye(8).double()))
