"""Kept columns (OWQ): the ones that matter are found, and the rest is solved as OPTQ would with them last."""

from dataclasses import replace

import pytest
import torch

from laws.problems import correlated
from laws.statements import close
from laws.toys import Lattice
from lowbit.codes import E8P, IntegerGrid
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.layer import quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.recipes import optq, owq
from lowbit.rounding import Ldlq, Nearest
from lowbit.sidecars import KeptColumns
from lowbit.transforms import RandomizedHadamard

PLANTED = [3, 17, 40]
CODE = IntegerGrid(3)
# Three columns of a [16, 64] layer.
KEPT = KeptColumns(CODE, 3 * (16 / 64 + 6 / (16 * 64)))


def planted(seed=0):
    """A layer [16, 64] of like inputs but for a few thirty times larger."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 64, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(
        0.7 ** (torch.arange(64)[:, None] - torch.arange(64)).abs().double()
    )
    x[:, PLANTED] *= 30
    return LayerProblem(torch.randn(16, 64, generator=generator, dtype=torch.float64), x.T @ x / len(x))


class Given(KeptColumns):
    """Keeps the columns it is told to."""

    kept = (5, 11, 60)

    def _sensitivity(self, problem):
        return torch.zeros(problem.shape[1]).index_fill(0, torch.tensor(self.kept), 1.0)


def solve(problem, side_car, code=CODE, rounder=None, transform=None):
    recipe = replace(optq(), code=code, rounder=rounder or Ldlq(), side_car=side_car)
    recipe = recipe if transform is None else replace(recipe, transform=transform)
    return quantize_layer(problem, recipe, stream(0, "columns"))


@pytest.mark.parametrize("seed", range(4))
def test_columns_of_huge_inputs_are_kept(seed):
    assert KEPT.start(planted(seed)).index.tolist() == PLANTED


def test_keeping_sensitive_columns_beats_keeping_others_beats_keeping_none():
    ours, others, none = (solve(planted(), side_car) for side_car in (KEPT, Given(CODE, KEPT.extra_bits), None))
    assert 2 * ours.stats["loss"] < others.stats["loss"] < none.stats["loss"]


def test_equals_optq_with_the_kept_columns_last():
    """Entry by entry: codes of the rest, and kept weights as OPTQ's updates leave them."""
    problem = planted()
    layer = solve(problem, KEPT, rounder=Ldlq(damping=0.0))
    rest = [j for j in range(64) if j not in PLANTED]
    side = CODE.fit(LayerProblem(problem.weight[:, rest], torch.eye(len(rest), dtype=torch.float64)))
    order = rest + PLANTED
    W, H = problem.weight[:, order].clone(), problem.hessian[order][:, order]
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    for j in range(len(rest)):
        codes, values = CODE.encode(W[:, [j]], side, torch.tensor([j]))
        assert torch.equal(codes[:, 0], layer.codes[:, rest[j]])
        W[:, j + 1 :] -= (W[:, j] - values[:, 0])[:, None] / U[j, j] * U[j, j + 1 :]
    torch.testing.assert_close(layer.dequantize()[:, PLANTED].double(), W[:, len(rest) :], rtol=1e-3, atol=1e-4)


def test_the_rest_has_the_loss_of_the_whole():
    """The Schur complement says what is lost once the kept columns have answered (float16 aside)."""
    problem = planted()
    first = KEPT.start(problem)
    rest = KEPT.rest(problem, first)
    w_hat = Ldlq().round(rest, CODE).w_hat
    whole = problem.loss(w_hat + KEPT.fit(problem, first, w_hat).dense())
    assert whole == pytest.approx(rest.loss(w_hat), rel=1e-3)
    assert float(torch.linalg.eigvalsh(rest.hessian).min()) > -1e-12


def test_more_columns_on_a_fixed_grid_never_lose_more():
    problem = planted()
    losses = [solve(problem, KeptColumns(Lattice(), 0.26 * c), Lattice(), Nearest()).stats["loss"] for c in (1, 4, 16)]
    assert losses == sorted(losses, reverse=True)


def test_every_column_kept_is_no_loss():
    assert solve(correlated(0), KeptColumns(CODE, 17.0)).stats["relative_loss"] < 1e-6


def test_any_code_and_transform():
    problem = planted()
    rotated = {"code": E8P(), "transform": RandomizedHadamard()}
    kept, plain = solve(problem, KEPT, **rotated), solve(problem, None, **rotated)
    assert close(kept.dequantize().double(), problem.weight, 0.5)
    assert kept.stats["loss"] < plain.stats["loss"]


def test_kept_inputs_are_not_reported_dead():
    assert solve(planted(), KEPT).outcomes == ()


@pytest.mark.parametrize(("extra_bits", "columns"), [(0.01, 2), (0.0118, 3), (0.1, 25), (0.0001, 1)])
def test_the_budget_is_kept_but_for_the_first_column(extra_bits, columns):
    shape, side_car = (4096, 4096), KeptColumns(CODE, extra_bits)
    assert side_car.count(shape) == columns
    assert bits_per_weight(side_car.fields(shape), shape) <= extra_bits or columns == 1


def test_bits_of_the_recipe():
    shape = (4096, 4096)
    assert bits_per_weight(owq().fields(shape), shape) == 3 + 19 / 4096 + 2 * 16 / 4096 + 24 / 4096**2


def test_budgets_out_of_range_are_refused():
    with pytest.raises(BadRequest, match=r"extra_bits=0.*above 0.*Use 0.01"):
        KeptColumns(CODE, 0.0)
    with pytest.raises(BadRequest, match=r"extra_bits=40.*keeping all 24 inputs of a \[6, 24\] layer"):
        KeptColumns(CODE, 40.0).check((6, 24))


def test_weights_beyond_float16_are_refused():
    problem = correlated(0)
    with pytest.raises(BadRequest, match=r"KeptColumns: weights up to [0-9.e+]+ do not fit the float16"):
        KeptColumns(IntegerGrid(3, scale_dtype="float32")).start(LayerProblem(problem.weight * 1e6, problem.hessian))
