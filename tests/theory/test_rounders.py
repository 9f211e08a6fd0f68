"""What the papers promise of each rounder beyond LDLQ, on small problems where it can be computed another way."""

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from laws.problems import correlated
from laws.toys import Codebook, Lattice
from lowbit.codes import E8P, BitshiftTrellis, IntegerGrid, MidriseGrid, TailBiting
from lowbit.core.errors import BadRequest
from lowbit.core.linalg import unit_upper_factor
from lowbit.core.maps import Permutation
from lowbit.core.order import visit
from lowbit.core.problem import LayerProblem
from lowbit.rounding import (
    Beam,
    ClampSafe,
    CoordinateDescent,
    Gpfq,
    Ldlq,
    MagR,
    Nearest,
    Optq,
    QuantEase,
    Stochastic,
)
from lowbit.rounding.clamp_safe import bounded_spread, inverse
from lowbit.rounding.magr import clipped, spectral_norm
from lowbit.rounding.sweep import sweep, tile_inverses

SEEDS = range(600, 608)
SCALAR = {
    "row": IntegerGrid(3),
    "groups": IntegerGrid(3, 8),
    "static groups": IntegerGrid(2, 8, scales="static"),
    "midrise": MidriseGrid(2),
}
STRIPS = TailBiting(BitshiftTrellis(6, 2, tile=(3, 1), values="gaussian"))


def random_gram(seed: int, n: int) -> torch.Tensor:
    x = torch.randn(3 * n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x / len(x)


# Beam


@pytest.mark.parametrize("code", SCALAR.values(), ids=SCALAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_beam_of_one_is_ldlq(code, dtype):
    for seed in SEEDS:
        problem = correlated(seed, dtype=dtype)
        ours, theirs = Beam(1, 1).round(problem, code), Ldlq().round(problem, code)
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.w_hat, theirs.w_hat)


@pytest.mark.parametrize("slab", [1, 3, 128])
def test_a_beam_that_holds_every_choice_finds_the_best(slab):
    """4^5 choices a row, the best of them by trying all; with the damping that the beam is told to minimise."""
    code, columns = IntegerGrid(2), torch.arange(5)
    for seed in SEEDS:
        problem = correlated(seed, n=2, k=5)
        side = code.fit(problem)
        every = torch.tensor(list(product(range(4), repeat=5)), dtype=torch.uint8)
        errors = torch.stack([code.decode(codes.expand(2, 5), side, columns) for codes in every]) - problem.weight
        best = ((errors @ problem.hessian) * errors).sum(2).amin(0).sum()
        rounded = Beam(4**5, 4, damping=0.0, slab=slab).round(problem, code)
        assert problem.loss(rounded.w_hat) == pytest.approx(float(best), rel=1e-9)


def test_slabs_of_a_beam_change_nothing():
    for code in SCALAR.values():
        problem = correlated(601)
        expected = Beam(7, 2).round(problem, code)
        for slab in (1, 5, 8):
            assert torch.equal(Beam(7, 2, slab=slab).round(problem, code).codes, expected.codes)


def test_wider_beams_are_better():
    """Geometric means over problems, relative to LDLQ."""
    means = []
    for width in (1, 4, 16, 64):
        ratios = []
        for seed in range(620, 650):
            problem = correlated(seed)
            ldlq = problem.loss(Ldlq().round(problem, IntegerGrid(3)).w_hat)
            ratios.append(math.log(problem.loss(Beam(width).round(problem, IntegerGrid(3)).w_hat) / ldlq))
        means.append(math.exp(sum(ratios) / len(ratios)))
    assert means == sorted(means, reverse=True)
    assert means[2] < 0.94


def test_a_beam_can_be_visited_in_order():
    problem, order = correlated(602), Permutation(torch.randperm(24, generator=torch.Generator().manual_seed(0)))
    code = IntegerGrid(3, 8, scales="static")
    ours, theirs = (visit(rounder, problem, code, order) for rounder in (Beam(1, 1), Ldlq()))
    assert torch.equal(ours.codes, theirs.codes)


def test_beams_of_values_without_levels_are_refused():
    for code in (E8P(), Lattice(), STRIPS):
        with pytest.raises(BadRequest, match=r"Beam needs to know the levels.*Use Ldlq"):
            Beam().round(correlated(0), code)


# Coordinate descent and QuantEase


def test_the_pull_kept_up_to_date_is_that_of_the_definition():
    """beta_j = W_j + sum over k != j of (W_k - W_hat_k) H_kj / H_jj, at every column of a sweep that moves them."""
    problem = correlated(603, n=3, k=300)
    W, H, w_hat = problem.weight, problem.hessian, problem.weight.round()
    inverses = tile_inverses(H, 1)

    def move(number, at, pull):
        j, others = at.start, torch.arange(300) != at.start
        beta = W[:, j] + (W - w_hat)[:, others] @ H[others, j] / H[j, j]
        torch.testing.assert_close((w_hat[:, at] + pull @ inverses[number])[:, 0], beta, rtol=1e-10, atol=1e-10)
        step = beta.round()[:, None] - w_hat[:, at]
        w_hat[:, at] += step
        return step

    sweep(W - w_hat, H, 1, move)


def test_quantease_beats_rounding_with_feedback():
    """On average over problems; coordinate descent from its answer finds next to nothing."""
    ours = ldlq = again = 0.0
    for seed in range(620, 628):
        problem = correlated(seed)
        ours += problem.relative_loss(QuantEase(30).round(problem, IntegerGrid(3)).w_hat)
        ldlq += problem.relative_loss(Ldlq().round(problem, IntegerGrid(3)).w_hat)
        again += problem.relative_loss(CoordinateDescent(QuantEase(30), 9).round(problem, IntegerGrid(3)).w_hat)
    assert ours < ldlq
    assert 0.97 * ours < again <= ours


def test_quantease_keeps_the_best_it_met():
    """More sweeps are never worse for any row, tile by tile of a trellis too."""
    for code in (IntegerGrid(2), STRIPS):
        problem, before = correlated(604), math.inf
        for sweeps in range(1, 9):
            rounded = QuantEase(sweeps).round(problem, code)
            assert torch.equal(code.decode(rounded.codes, rounded.side, torch.arange(24)).double(), rounded.w_hat)
            if sweeps % 3 != 2:  # the second and the fifth sweep are relaxed unless they are the last
                assert problem.loss(rounded.w_hat) <= before
                before = problem.loss(rounded.w_hat)


# GPFQ


def test_gpfq_follows_the_path():
    """Against the definition on tokens: u += w_t X_t;  q_t = Q(<X_t, u> / |X_t|^2);  u -= q_t X_t."""
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64).cumsum(1)
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    code, problem = IntegerGrid(3), LayerProblem(weight, x.T @ x / 40)
    side, u, expected = code.fit(problem), torch.zeros(3, 40, dtype=torch.float64), torch.empty_like(weight)
    for t in range(12):
        u += weight[:, [t]] * x[:, t]
        _, expected[:, [t]] = code.encode((u @ x[:, t] / x[:, t].square().sum())[:, None], side, torch.tensor([t]))
        u -= expected[:, [t]] * x[:, t]
    torch.testing.assert_close(Gpfq(slab=5).round(problem, code).w_hat, expected, rtol=1e-12, atol=1e-12)


def test_gpfq_needs_no_definite_hessian():
    """Fewer tokens than inputs, and inputs that never fire, which are rounded to nearest."""
    problem = correlated(605, tokens=5)
    dead = problem.hessian.clone()
    dead[[2, 9]], dead[:, [2, 9]] = 0, 0
    rounded = Gpfq().round(LayerProblem(problem.weight, dead), IntegerGrid(3))
    nearest = Nearest().round(problem, IntegerGrid(3))
    assert torch.equal(rounded.codes[:, [2, 9]], nearest.codes[:, [2, 9]])
    assert [outcome.kind for outcome in rounded.outcomes] == ["dead inputs"]


# Unbiased rounding


@pytest.mark.parametrize("rounder", [Nearest(), Ldlq(), Optq(), Gpfq(), ClampSafe(0.1, iterations=5)], ids=repr)
def test_unbiased_rounding_is_unbiased(rounder):
    """The mean over seeds approaches W as one over the root of their number; a wide grid, so nothing is clamped."""
    problem, code, seeds = correlated(606, n=4, k=8), MidriseGrid(6, reach=12.0), 200
    step = float(code.fit(problem)["scale"])
    answers = torch.stack([Stochastic(rounder, seed).round(problem, code).w_hat for seed in range(seeds)])
    deviation = (answers.mean(0) - problem.weight).abs()
    assert float((deviation / answers.std(0).clamp_min(step / 100)).max()) < 4.5 / seeds**0.5


def test_stochastic_optq_is_stochastic_ldlq():
    for seed in SEEDS:
        problem = correlated(seed)
        ldlq, optq = (Stochastic(r, seed).round(problem, IntegerGrid(3, 8)) for r in (Ldlq(slab=5), Optq()))
        assert torch.equal(ldlq.codes, optq.codes)


def test_unbiased_rounding_errs_by_less_than_a_step_and_twice_as_much():
    """Residuals below a step, mean square s^2 / 6 where nearest has s^2 / 12."""
    code, squares = MidriseGrid(6, reach=12.0), 0.0
    for seed in SEEDS:
        problem = correlated(seed)
        step = float(code.fit(problem)["scale"])
        residual = (Stochastic(Ldlq(), seed).round(problem, code).w_hat - problem.weight) @ unit_upper_factor(
            problem.hessian, 0.01
        ).unit_upper
        assert float(residual.abs().max()) <= step * (1 + 1e-9)
        squares += float((residual / step).square().mean())
    assert squares / len(SEEDS) == pytest.approx(1 / 6, rel=0.1)


def test_seeds_differ_and_repeat():
    problem, code = correlated(607), IntegerGrid(2)
    first, again, other = (Stochastic(Ldlq(), seed).round(problem, code).codes for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_searches_are_not_unbiased():
    with pytest.raises(BadRequest, match="Beam needs to know the levels"):
        Stochastic(Beam()).round(correlated(0), IntegerGrid(3))


# Clamp-safe feedback


def test_unbounded_feedback_is_ldlq_and_none_is_nearest():
    for seed in SEEDS:
        problem = correlated(seed)
        for excess, other in ((1e9, Ldlq()), (0.0, Nearest())):
            ours = ClampSafe(excess).round(problem, IntegerGrid(3))
            assert torch.equal(ours.codes, other.round(problem, IntegerGrid(3)).codes)


def test_bounded_feedback_is_the_best_within_its_bound():
    """Against projected gradients, slow and sure; every column keeps within the bound."""
    problem = correlated(608, k=10, tokens=100)
    H = problem.hessian / problem.hessian.diagonal().mean() + 0.2 * torch.eye(10, dtype=torch.float64)
    start = inverse(unit_upper_factor(H, 0.0).unit_upper)
    for excess in (0.01, 0.1):
        ours = bounded_spread(H, start, excess, 300)
        assert float(ours.triu(1).square().sum(0).max()) <= excess * (1 + 1e-9)
        slow = torch.zeros(10, 10, dtype=torch.float64)
        for _ in range(1500):
            slow = (slow - ((slow + torch.eye(10, dtype=torch.float64)) @ H).triu(1) / spectral_norm(H)).triu(1)
            slow *= (excess**0.5 / slow.norm(dim=0)).nan_to_num(1.0).clamp_max(1.0)
        slow += torch.eye(10, dtype=torch.float64)
        assert float(torch.trace(ours @ H @ ours.T)) == pytest.approx(float(torch.trace(slow @ H @ slow.T)), rel=1e-4)


def test_bounded_feedback_leaves_the_grid_less():
    """Mean distance of aims from the weights, at a price in loss."""
    wander, loss = {0.1: 0.0, 1e9: 0.0}, {0.1: 0.0, 1e9: 0.0}
    for seed in range(620, 640):
        problem = correlated(seed)
        for excess in wander:
            w_hat = ClampSafe(excess).round(problem, Lattice(0.5)).w_hat
            wander[excess] += float((w_hat - problem.weight).square().mean())
            loss[excess] += problem.relative_loss(w_hat)
    assert wander[0.1] < 0.8 * wander[1e9]
    assert loss[0.1] > loss[1e9]


# Row Hessians


def test_two_sided_ldlq_is_optq_on_the_kronecker_problem():
    """Entry by entry: G x H with the weights of all rows in one, and one scale for all."""
    code = IntegerGrid(3, "tensor")
    for seed in SEEDS:
        problem, G = correlated(seed, n=6, k=10), random_gram(seed, 6)
        blocks = torch.block_diag(G[:2, :2], G[2:4, 2:4], G[4:, 4:])
        for rows in (G, blocks):
            two_sided = Ldlq(0.0, slab=4).round(replace(problem, row_hessian=rows), code)
            joined = LayerProblem(problem.weight.view(1, -1), torch.kron(rows, problem.hessian))
            assert torch.equal(two_sided.codes.view(1, -1), Optq(0.0).round(joined, code).codes)


def test_a_diagonal_row_hessian_changes_nothing():
    for seed in SEEDS:
        problem = correlated(seed)
        weighted = replace(problem, row_hessian=random_gram(seed, 6).diagonal().diag())
        for rounder in (Ldlq(), CoordinateDescent(Ldlq(), 2)):
            assert torch.equal(
                rounder.round(weighted, IntegerGrid(3)).codes, rounder.round(problem, IntegerGrid(3)).codes
            )


@pytest.mark.parametrize("code", [IntegerGrid(3), IntegerGrid(3, 8), E8P(), Codebook(4, (1, 2)), STRIPS], ids=str)
def test_row_hessians_pay(code):
    """On average, for scalars, tiles of columns and of rows; and descent from there is never worse."""
    plain = honoured = improved = 0.0
    for seed in range(660, 672):
        problem = replace(correlated(seed), row_hessian=random_gram(seed, 6) + 0.5)
        fed, better = (rounder.round(problem, code) for rounder in (Ldlq(), CoordinateDescent(Ldlq(), 3)))
        assert problem.loss(better.w_hat) <= problem.loss(fed.w_hat) * (1 + 1e-9)
        plain += problem.relative_loss(Ldlq().round(replace(problem, row_hessian=None), code).w_hat)
        honoured += problem.relative_loss(fed.w_hat)
        improved += problem.relative_loss(better.w_hat)
    assert improved < honoured < plain


def test_descent_with_a_row_hessian_ends_where_no_code_can_change():
    problem = replace(correlated(9, n=3, k=8), row_hessian=random_gram(9, 3))
    code, columns = MidriseGrid(2), torch.arange(8)
    rounded = CoordinateDescent(Ldlq(), passes=100).round(problem, code)
    best = problem.loss(rounded.w_hat)
    for row, column, q in product(range(3), range(8), range(4)):
        codes = rounded.codes.clone()
        codes[row, column] = q
        assert problem.loss(code.decode(codes, rounded.side, columns)) >= best * (1 - 1e-5)


def test_whoever_leaves_a_row_hessian_out_says_so():
    problem = replace(correlated(1), row_hessian=random_gram(1, 6))
    for rounder in (Beam(), QuantEase(2)):
        assert "row hessian unused" in [outcome.kind for outcome in rounder.round(problem, IntegerGrid(3)).outcomes]
    whole = TailBiting(BitshiftTrellis(6, 2, tile=(6, 1), values="gaussian"))
    assert "row hessian unused" in [outcome.kind for outcome in Ldlq().round(problem, whole).outcomes]
    assert not Ldlq().round(problem, IntegerGrid(3)).outcomes


def test_an_indefinite_row_hessian_is_damped_more():
    G = random_gram(2, 6)
    G -= 1.5 * torch.linalg.eigvalsh(G)[0] * torch.eye(6, dtype=torch.float64)
    rounded = Ldlq(0.0).round(replace(correlated(2), row_hessian=G), IntegerGrid(3))
    assert [outcome.kind for outcome in rounded.outcomes] == ["row damping raised"]


# MagR


def test_what_is_clipped_sums_to_the_mass():
    x = torch.randn(50, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mass in (1e-6, 0.1, 3.0):
        y = clipped(x, mass)
        torch.testing.assert_close((x - y).abs().sum(1), torch.full((50,), mass, dtype=torch.float64))
        assert bool(((y.abs() == y.abs().amax(1, keepdim=True)) | (x == y)).all())
    assert not clipped(x, 1e3).any()


def test_magr_meets_its_conditions():
    """At the end the gradient of each row lies on the entries of largest magnitude, against their signs, summing to
    alpha; and the objective only fell on the way."""
    problem = correlated(10, tokens=60)
    H = problem.hessian / spectral_norm(problem.hessian)
    alpha = 0.05 * float(problem.weight.square().mean().sqrt())

    def objective(V):
        return 0.5 * ((V - problem.weight) @ H * (V - problem.weight)).sum(1) + alpha * V.abs().amax(1)

    values = [objective(MagR(Ldlq(), 0.05, iterations=i).shrunk(problem)) for i in (1, 2, 3, 10, 50)]
    assert all(bool((b <= a + 1e-12).all()) for a, b in pairwise(values))
    V = MagR(Ldlq(), 0.05, iterations=4000).shrunk(problem)
    gradient, largest = (V - problem.weight) @ H, V.abs().amax(1, keepdim=True)
    inside = V.abs() < largest * (1 - 1e-6)
    assert float(gradient[inside].abs().max()) < 0.01 * alpha
    assert bool((gradient[~inside] * V[~inside] < 0).all())
    torch.testing.assert_close(gradient.abs().sum(1), torch.full((6,), alpha, dtype=torch.float64), rtol=0.05, atol=0)


def test_magr_shrinks_the_range_and_the_loss():
    """Three quarters of the range left, and less loss, on average where the inputs span few directions."""
    shrunk, largest, ours, ldlq = 0.0, 0.0, 0.0, 0.0
    for seed in range(680, 690):
        problem = correlated(seed, k=48, tokens=24)
        shrunk += float(MagR(Ldlq()).shrunk(problem).abs().amax(1).mean())
        largest += float(problem.weight.abs().amax(1).mean())
        ours += problem.relative_loss(MagR(Ldlq()).round(problem, IntegerGrid(2)).w_hat)
        ldlq += problem.relative_loss(Ldlq().round(problem, IntegerGrid(2)).w_hat)
    assert shrunk < 0.75 * largest
    assert ours < ldlq


def test_magr_scales_with_the_layer():
    problem = correlated(11)
    scaled = LayerProblem(8 * problem.weight, 3 * problem.hessian)
    torch.testing.assert_close(MagR(Ldlq()).shrunk(scaled), 8 * MagR(Ldlq()).shrunk(problem))


def test_magr_polished_aims_at_the_weight_itself():
    problem = correlated(12)
    plain, polished = (r.round(problem, IntegerGrid(2)) for r in (MagR(Ldlq()), CoordinateDescent(MagR(Ldlq()), 5)))
    assert problem.loss(polished.w_hat) < problem.loss(plain.w_hat)


def test_magr_of_groups():
    """Each group keeps its own magnitude; groups that do not divide the inputs are refused, and so says the message."""
    problem = correlated(13)
    V = MagR(Ldlq(), 0.05, group_size=8).shrunk(problem)
    rows = V.view(6, 3, 8).abs().amax(2)
    assert float((rows.amax(1) / rows.amin(1)).min()) > 1.01
    with pytest.raises(BadRequest, match=r"group_size=7.*24 inputs"):
        MagR(Ldlq(), 0.05, group_size=7).round(problem, IntegerGrid(2))


def test_no_signal_leaves_the_weight():
    problem = LayerProblem(correlated(1).weight, torch.zeros(24, 24, dtype=torch.float64))
    assert torch.equal(MagR(Ldlq()).shrunk(problem), problem.weight)
    for rounder in (MagR(Ldlq()), Gpfq(), QuantEase(3), Beam(), ClampSafe(), Stochastic(Gpfq())):
        kinds = [outcome.kind for outcome in rounder.round(problem, IntegerGrid(3)).outcomes]
        assert kinds == ["no signal"]


@pytest.mark.parametrize("rounder", [Gpfq(), QuantEase(2)], ids=repr)
def test_what_is_no_second_moment_is_refused(rounder):
    problem = correlated(1)
    for value, message in ((-1.0, "-1 on its diagonal"), (math.nan, "not finite")):
        hessian = problem.hessian.clone()
        hessian[3, 3] = value
        with pytest.raises(BadRequest, match=message):
            rounder.round(LayerProblem(problem.weight, hessian), IntegerGrid(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Beam(0), r"Beam\(width=0\).*Use 16"),
        (lambda: Beam(4, 0), r"candidates=0"),
        (lambda: Beam(slab=0), r"slab=0"),
        (lambda: Beam(damping=-1), r"damping=-1"),
        (lambda: QuantEase(0), r"sweeps=0.*Use 30"),
        (lambda: Gpfq(slab=0), r"slab=0"),
        (lambda: Stochastic(Ldlq(), -1), r"seed=-1"),
        (lambda: ClampSafe(-0.1), r"excess=-0.1.*Use 1"),
        (lambda: ClampSafe(iterations=0), r"iterations=0"),
        (lambda: MagR(Ldlq(), 0.0), r"strength=0.0.*Use 0.05"),
        (lambda: MagR(Ldlq(), group_size=0), r"group_size=0"),
        (lambda: MagR(Ldlq(), iterations=0), r"iterations=0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(BadRequest, match=message):
        make()
