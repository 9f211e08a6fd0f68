"""What the theorems promise, on random problems: each bound holds, and is attained where it is said to be.

T0 to T7 are the statements of "Provable Post-Training Quantization" (arXiv 2508.04853) in the form that our own
derivation gives them; a calibration set X of T tokens enters through H = X^T X / T and a damping of lambda / T.
"""

import math

import pytest
import torch

from laws.problems import correlated, correlated_inputs
from laws.tables import CODES
from laws.toys import Codebook, Lattice, Scaled
from lowbit.codes import IntegerGrid
from lowbit.core.layer import quantize_layer
from lowbit.core.linalg import unit_upper_factor
from lowbit.core.order import visit
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.core.recipe import Recipe
from lowbit.rounding import CoordinateDescent, Ldlq, MagR, Nearest, Optq, RefittedScales, Stochastic
from lowbit.rounding.bounds import incoherent_trace, largest_output_error, mismatch
from lowbit.statistics import SecondMoment
from lowbit.transforms import ActOrder, NoTransform, RandomizedHadamard, Rescale
from lowbit.transforms.order import by_diagonal

STEP, DAMPING = 0.25, 0.01
SEEDS = range(600, 612)
WITH_FEEDBACK = [Ldlq(DAMPING), Ldlq(0.3, slab=5), Optq(DAMPING), CoordinateDescent(Ldlq(DAMPING), 2)]


def damped(problem, damping=DAMPING):
    hessian = problem.hessian.clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    return LayerProblem(problem.weight, hessian)


@pytest.mark.parametrize("rounder", [*WITH_FEEDBACK, Nearest()], ids=repr)
def test_no_loss_exceeds_its_bound_on_an_endless_grid(rounder):
    for seed in SEEDS:
        problem = correlated(seed)
        rounded = rounder.round(problem, Lattice(STEP))
        assert rounded.guarantee.clamped == 0
        assert problem.loss(rounded.w_hat) <= rounded.guarantee.bound


@pytest.mark.parametrize("code", [IntegerGrid(4), IntegerGrid(3, 8), IntegerGrid(3, 8, symmetric=True)], ids=repr)
@pytest.mark.parametrize("rounder", [Ldlq(), Optq(), Nearest()], ids=repr)
def test_bounds_of_grids_with_ends_hold_where_nothing_was_clamped(rounder, code):
    assert_holds_unclamped(rounder, code)


def test_refitted_scales_keep_the_bound_that_they_only_improve_on():
    assert_holds_unclamped(RefittedScales(Ldlq()), IntegerGrid(4))


def assert_holds_unclamped(rounder, code):
    unclamped = 0
    for seed in SEEDS:
        problem = correlated(seed, n=1)
        rounded = rounder.round(problem, code)
        if rounded.guarantee.clamped == 0:
            unclamped += 1
            assert problem.loss(rounded.w_hat) <= rounded.guarantee.bound
    assert unclamped


def test_clamped_weights_are_counted():
    """Weights beyond the grid's ends err by more than half a step, and by their number."""
    weight = torch.linspace(-1, 1, 9, dtype=torch.float64).view(1, 9).clone()
    weight[0, 4] = 30.0
    code = IntegerGrid(3, 3, scales="static")
    problem = LayerProblem(weight, torch.eye(9, dtype=torch.float64))
    small = LayerProblem(weight.clamp(-1, 1), problem.hessian)

    class Narrow(IntegerGrid):
        def fit(self, problem):
            return super().fit(small)

    assert Nearest().round(problem, code).guarantee.clamped == 0
    for rounder in (Nearest(), Ldlq()):
        assert rounder.round(problem, Narrow(3, 3, scales="static")).guarantee.clamped == pytest.approx(1 / 9)


def test_average_is_a_third_of_the_bound():
    """Residuals are uniform over a cell: E r^2 = step^2 / 12 where the bound counts step^2 / 4."""
    losses = bounds = 0.0
    for seed in SEEDS:
        problem = damped(correlated(seed, n=20))
        rounded = Ldlq(0.0).round(problem, Lattice(STEP))
        losses, bounds = losses + problem.loss(rounded.w_hat), bounds + rounded.guarantee.bound
    assert losses / bounds == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize("rounder", [Ldlq(0.0), Optq(0.0)], ids=repr)
def test_feedback_bound_is_attained_where_every_residual_is_half_a_step(rounder):
    """T1 is sharp for every Hessian: weights W = Q - R A^-1 with R all but half a step off."""
    for seed in SEEDS:
        problem = damped(correlated(seed))
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, problem.shape, generator=generator) * 2.0 - 1
        residual = signs.double() * STEP / 2 * (1 - 1e-6)
        chosen = STEP * torch.randint(-9, 9, problem.shape, generator=generator).double()
        factor = unit_upper_factor(problem.hessian, 0.0)
        error = torch.linalg.solve_triangular(factor.unit_upper, residual, upper=True, left=False)
        worst = LayerProblem(chosen - error, problem.hessian)
        rounded = rounder.round(worst, Lattice(STEP))
        torch.testing.assert_close(rounded.w_hat, chosen)
        assert worst.loss(rounded.w_hat) == pytest.approx(rounded.guarantee.bound, rel=1e-5)


def test_nearest_bound_is_attained_where_errors_can_conspire():
    """Rank one: every weight half a step off in the direction of the one token."""
    token = correlated_inputs(1, 24, torch.Generator().manual_seed(0))
    off = token.sign() * STEP / 2 * (1 - 1e-6)
    problem = LayerProblem(3 * STEP + off, token.T @ token)
    rounded = Nearest().round(problem, Lattice(STEP))
    assert problem.loss(rounded.w_hat) == pytest.approx(rounded.guarantee.bound, rel=1e-5)


def test_bounds_agree_on_a_diagonal_hessian_and_feedback_promises_more_elsewhere():
    for seed in SEEDS:
        problem = correlated(seed)
        flat = LayerProblem(problem.weight, problem.hessian.diagonal().diag())
        far, near = (rounder.round(flat, Lattice(STEP)).guarantee.bound for rounder in (Nearest(), Ldlq(0.0)))
        assert near == pytest.approx(far, rel=1e-12)
        far, near = (rounder.round(problem, Lattice(STEP)).guarantee.bound for rounder in (Nearest(), Ldlq(0.0)))
        assert near < far / 2


def test_row_hessian_widens_the_bound_of_nearest():
    for seed in SEEDS:
        problem = correlated(seed)
        rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        problem = LayerProblem(problem.weight, problem.hessian, rows @ rows.T)
        rounded = Nearest().round(problem, Lattice(STEP))
        assert problem.loss(rounded.w_hat) <= rounded.guarantee.bound


def test_feedback_between_rows_has_its_bound():
    """Both factors' pivots weigh the cells; a third of it on average, and attained by residuals of half a step."""
    losses = bounds = 0.0
    for seed in SEEDS:
        problem = damped(correlated(seed))
        rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for G in (rows @ rows.T, rows.square().sum(1).diag()):
            coupled = LayerProblem(problem.weight, problem.hessian, G)
            rounded = Ldlq(0.0).round(coupled, Lattice(STEP))
            assert rounded.guarantee.clamped == 0
            assert coupled.loss(rounded.w_hat) <= rounded.guarantee.bound
            losses, bounds = losses + coupled.loss(rounded.w_hat), bounds + rounded.guarantee.bound
        assert (
            Optq(0.0).round(LayerProblem(problem.weight, problem.hessian, rows @ rows.T), Lattice()).guarantee is None
        )
    assert losses / bounds == pytest.approx(1 / 3, rel=0.1)


def test_every_group_counts_with_its_own_step():
    """Groups of very different sizes: with H = I the bound is the sum of their steps squared over four."""
    weight = correlated(0).weight * torch.logspace(-2, 2, 24, dtype=torch.float64)
    code = IntegerGrid(4, 8)
    rounded = Nearest().round(LayerProblem(weight, torch.eye(24, dtype=torch.float64)), code)
    steps = (weight.view(6, 3, 8).amax(2).clamp_min(0) - weight.view(6, 3, 8).amin(2).clamp_max(0)) / 15
    assert rounded.guarantee.bound == pytest.approx(8 * float(steps.square().sum()) / 4, rel=1e-3)


def test_order_of_visit_keeps_the_guarantee():
    problem = correlated(601)
    order = by_diagonal(problem)
    rounded = visit(Ldlq(), problem, IntegerGrid(4, 8, scales="static"), order)
    inner = LayerProblem(problem.weight[:, order.index], problem.hessian[order.index][:, order.index])
    factor = unit_upper_factor(inner.hessian, 0.01)
    cells = (rounded.side["scale"] / 2).repeat_interleave(8, 1)[:, order.index]
    assert rounded.guarantee.bound == pytest.approx(float(cells.square().sum(0) @ factor.diagonal), rel=1e-12)


@pytest.mark.parametrize(
    ("transform", "code", "kept"),
    [
        (NoTransform(), Lattice(STEP), True),
        (ActOrder(), Lattice(STEP), True),
        (RandomizedHadamard(), Lattice(STEP), True),
        (Rescale(), Lattice(STEP), True),
        (Scaled(), Lattice(STEP), False),
        (NoTransform(), Codebook(), False),
    ],
    ids=repr,
)
def test_layer_tells_the_bound_where_it_holds_for_its_own_loss(transform, code, kept):
    """Scales of outputs change what the loss weighs; a code of vectors tells no cell."""
    recipe = Recipe("bound", SecondMoment(), transform, code, Ldlq())
    stats = quantize_layer(correlated(602), recipe, stream(0, "bound")).stats
    assert (stats["bound"] is not None) == kept
    if kept:
        assert stats["limit"] < stats["loss"] <= stats["bound"]
        assert stats["clamped"] == 0


# The statements of the paper


def tokens_of(problem, count):
    """X [count, K] with X^T X / count = H: any calibration set is as good as another."""
    values, vectors = torch.linalg.eigh(problem.hessian)
    k = len(values)
    frame = torch.linalg.qr(torch.randn(count, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    return math.sqrt(count) * frame * values.clamp_min(0).sqrt() @ vectors.T


def test_T0_error_is_a_sum_over_orthogonal_directions():
    """X (w - q) = sum_t r_t u_t, u_t orthogonal with |u_t|^2 = T d_t: the columns of X A^-T."""
    problem = damped(correlated(603))
    x, factor = tokens_of(problem, 60), unit_upper_factor(problem.hessian, 0.0)
    directions = torch.linalg.solve_triangular(factor.unit_upper, x.T, upper=True).T
    torch.testing.assert_close(directions.T @ directions, (60 * factor.diagonal).diag(), rtol=1e-8, atol=1e-8)
    w_hat = Ldlq(0.0).round(problem, Lattice(STEP)).w_hat
    left = (problem.weight - w_hat) @ factor.unit_upper
    torch.testing.assert_close((problem.weight - w_hat) @ x.T, left @ directions.T, rtol=1e-8, atol=1e-8)


def test_T2_a_pivot_is_what_later_inputs_cannot_explain():
    """d_t = min over c of mean |x_t - X_later c|^2 + damping (1 + |c|^2), so any c bounds it; c = 0 gives H_tt."""
    problem = correlated(604)
    H, extra = problem.hessian, DAMPING * float(problem.hessian.diagonal().mean())
    own = damped(problem).hessian
    pivots = unit_upper_factor(H, DAMPING).diagonal
    for t in range(len(H) - 1):
        later = slice(t + 1, None)
        best = torch.linalg.solve(own[later, later], own[later, t])
        for c, exact in ((best, True), (0.9 * best, False), (torch.zeros_like(best), False)):
            joined = torch.cat([torch.ones(1, dtype=c.dtype), -c])
            cost = float(joined @ H[t:, t:] @ joined + extra * (1 + c @ c))
            assert float(pivots[t]) <= cost * (1 + 1e-9)
            assert not exact or math.isclose(float(pivots[t]), cost, rel_tol=1e-6)


def test_T3_with_few_tokens_only_the_last_columns_pay_and_small_ones_should_be_last():
    problem, m = correlated(605, tokens=8), 8
    sums = {}
    for name, index in (("given", torch.arange(24)), ("small last", by_diagonal(problem).index)):
        H = problem.hessian[index][:, index]
        pivots = unit_upper_factor(H, 1e-9).diagonal
        assert float(pivots[:-m].sum()) < 0.01 * float(pivots[-m:].sum())
        assert bool((pivots[-m:] <= H.diagonal()[-m:] + 1e-6).all())
        assert float(pivots.sum()) <= m * float(H.diagonal().max()) * (1 + 1e-6)
        sums[name] = float(pivots.sum())
    assert sums["small last"] < sums["given"]


def test_T4_damping_keeps_the_answer_near_the_weights():
    """damping |w - q|^2 is bounded too; with more damping q stays nearer and the loss grows, on average."""
    drift, loss = [], []
    for damping in (1e-4, 1e-2, 1.0):
        drift.append(0.0)
        loss.append(0.0)
        for seed in SEEDS:
            problem = correlated(seed, tokens=30)
            rounded = Ldlq(damping).round(problem, Lattice(STEP))
            moved = float((rounded.w_hat - problem.weight).square().sum())
            assert damping * float(problem.hessian.diagonal().mean()) * moved <= rounded.guarantee.bound
            drift[-1] += moved
            loss[-1] += problem.loss(rounded.w_hat)
    assert drift == sorted(drift, reverse=True)
    assert loss == sorted(loss)


class Randomly(Lattice):
    """Rounds up or down, each as often as makes the mean right."""

    def __init__(self, step, generator):
        super().__init__(step)
        object.__setattr__(self, "generator", generator)

    def encode(self, target, side, columns):
        down = (target / self.step).floor()
        up = torch.rand(target.shape, generator=self.generator, dtype=target.dtype) < target / self.step - down
        codes = (down + up + 2**15).int()
        return codes, self._values(codes, target.dtype)

    def half_widths(self, side, columns):
        return torch.full((1, 1), self.step)


def test_T5_stochastic_rounding_bounds_every_output():
    """Its errors are right on average, within four times the sure bound, and no output of any token errs by much."""
    problem, tokens = damped(correlated(606)), 40
    x, factor = tokens_of(problem, tokens), unit_upper_factor(problem.hessian, 0.0)
    limit = largest_output_error(STEP, factor.diagonal, tokens, len(problem.weight))
    mean, losses, largest, runs = torch.zeros(problem.shape, dtype=torch.float64), 0.0, 0.0, 200
    for seed in range(runs):
        code = Randomly(STEP, torch.Generator().manual_seed(seed))
        rounded = Ldlq(0.0).round(problem, code)
        sure = rounded.guarantee
        assert problem.loss(rounded.w_hat) <= sure.bound
        assert sure.clamped == 0
        error = rounded.w_hat - problem.weight
        largest = max(largest, float((error @ x.T).abs().max()))
        mean, losses = mean + error @ factor.unit_upper / runs, losses + problem.loss(rounded.w_hat) / runs
    assert losses <= sure.bound / 4
    assert losses == pytest.approx(sure.bound / 6, rel=0.1)  # E r^2 = step^2 / 6 for uniform fractions
    assert float(mean.abs().max()) < 5 * STEP / 2 / math.sqrt(runs)
    assert limit / 30 < largest <= limit


def test_rounding_at_random_may_cost_four_times_as_much():
    """Whole steps instead of half ones; a grid fine enough that nothing is clamped."""
    for seed in SEEDS:
        problem, code = correlated(seed), IntegerGrid(8, scale_dtype="float32")
        sure, lucky = Stochastic(Ldlq(), seed).round(problem, code), Ldlq().round(problem, code)
        assert sure.guarantee.bound == pytest.approx(4 * lucky.guarantee.bound, rel=1e-9)
        assert sure.guarantee.clamped or problem.loss(sure.w_hat) <= sure.guarantee.bound


def test_a_bound_about_other_weights_is_not_passed_on():
    """MagR rounds a smaller weight, and it is the real one's loss that counts."""
    assert MagR(Ldlq()).round(correlated(609), IntegerGrid(4)).guarantee is None


def test_T7_error_against_float_inputs_is_mismatch_plus_rounding():
    """Mean |W x - W_hat z|^2 + damping |W - W_hat|^2: exact on the corrected target, larger without the correction."""
    generator, tokens, extra = torch.Generator().manual_seed(7), 300, 0.05
    x = correlated_inputs(tokens, 24, generator)
    z = x + 0.3 * correlated_inputs(tokens, 24, generator)
    weight = correlated(607).weight
    F, C, H = x.T @ x / tokens, x.T @ z / tokens, z.T @ z / tokens
    own = extra * torch.eye(24, dtype=torch.float64)
    target = torch.linalg.solve(H + own, (weight @ (C + own)).T).T
    floor = mismatch(weight, F, C, H, extra)

    def error(w_hat):
        return float((weight @ x.T - w_hat @ z.T).square().sum()) / tokens + extra * float(
            (weight - w_hat).square().sum()
        )

    assert error(target) == pytest.approx(floor, rel=1e-9)
    corrected = LayerProblem(target, H + own)
    rounded = Ldlq(0.0).round(corrected, Lattice(STEP))
    assert error(rounded.w_hat) == pytest.approx(floor + corrected.loss(rounded.w_hat), rel=1e-9)
    assert error(rounded.w_hat) <= floor + rounded.guarantee.bound
    plain = Ldlq(0.0).round(LayerProblem(weight, H + own), Lattice(STEP))
    assert error(rounded.w_hat) < error(plain.w_hat)
    assert mismatch(weight, F, F, F, extra) == pytest.approx(0, abs=1e-9)


def test_QuIP_trace_bound_is_looser_than_the_pivots_and_sharp_where_rotated_flat():
    """sum_j d_j <= mu^2 / K tr(H^(1/2))^2 <= mu^2 tr H; equal for equal eigenvalues in a basis of mu = 1."""
    for seed in SEEDS:
        H = damped(correlated(seed)).hessian
        pivots = float(unit_upper_factor(H, 0.0).diagonal.sum())
        assert pivots <= min(incoherent_trace(H), float(H.trace()))
    basis = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    basis = torch.kron(torch.kron(basis, basis), basis) / math.sqrt(8)
    values = 1 + 1e-6 * torch.arange(8, dtype=torch.float64)  # apart, so that eigenvectors are these
    H = basis * values @ basis.T
    assert incoherent_trace(H) == pytest.approx(float(unit_upper_factor(H, 0.0).diagonal.sum()), rel=1e-4)


def test_codes_tell_their_worst_cell():
    """No weight within range is farther from its nearest value than the half-width, and some are nearly as far."""
    for name in ("3 bits", "4 bits symmetric", "groups", "static groups", "midrise grid", "float32 scales"):
        code, problem = CODES[name], correlated(608, n=64)
        side, columns = code.fit(problem), torch.arange(24)
        if code.refit_every:
            side = code.refit(side, problem.weight, columns)
        lowest, highest = (
            code.decode(torch.full((64, 24), q), side, columns) for q in (0, 2 ** code.fields((1, 1))["codes"].bits - 1)
        )
        place = torch.rand(64, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        inside = lowest + place * (highest - lowest)
        share = (code.encode(inside, side, columns)[1] - inside).abs() / code.half_widths(side, columns)
        assert 0.98 < float(share.max()) <= 1 + 1e-3
