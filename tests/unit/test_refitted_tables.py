"""Tables refitted once the codes are chosen: against the solved normal equations, and never worse."""

from dataclasses import replace

import pytest
import torch

from laws.problems import correlated
from laws.statements import close, solve
from lowbit.codes import (
    BinaryCoding,
    BlockScaled,
    ClusteredLevels,
    HessianRange,
    IntegerGrid,
    Lookup,
    MidriseGrid,
    SharedLevels,
    VectorCodebook,
)
from lowbit.core.errors import BadRequest
from lowbit.core.problem import LayerProblem
from lowbit.recipes import make_recipe
from lowbit.rounding import CoordinateDescent, Ldlq, Nearest, RefittedTables
from lowbit.transforms import StaticOrder

PROBLEM = correlated(0, 24, 48)
CODES = {
    "vectors": VectorCodebook(2, 3),
    "vectors in groups, two stages": VectorCodebook(2, 2, 2, group_size=16, codebooks="dynamic"),
    "clusters": Lookup(ClusteredLevels(2)),
    "two tables for all rows": Lookup(SharedLevels(2, 2)),
    "planes in groups": Lookup(BinaryCoding(2, "signs"), 16),
    "vectors with scales of blocks": BlockScaled(VectorCodebook(2, 3), 8),
    "integers in groups": IntegerGrid(2, 16, range=HessianRange(), scales="static"),
}
ROWS = torch.randn(24, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def normal_equations(problem, code, rounded):
    """The least loss of any tables: every entry's image, and a dense least-squares problem in them."""
    names, every = code.linear_in, torch.arange(problem.shape[1])
    images = []
    for name in names:
        zero = {one: torch.zeros_like(rounded.side[one]) for one in names}
        for at in range(rounded.side[name].numel()):
            zero[name].view(-1)[at] = 1
            images.append(code.decode(rounded.codes, {**rounded.side, **zero}, every).flatten())
            zero[name].view(-1)[at] = 0
    rows = torch.eye(problem.shape[0]).double() if problem.row_hessian is None else problem.row_hessian
    root = torch.kron(torch.linalg.cholesky(rows).T, torch.linalg.cholesky(problem.hessian).T)
    design, wanted = root @ torch.stack(images, 1), root @ problem.weight.flatten()
    return float(
        (wanted - design @ torch.linalg.lstsq(design, wanted[:, None], driver="gelsd").solution[:, 0]).square().sum()
    )


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("rows", [None, ROWS @ ROWS.T / 30], ids=["rows alike", "row hessian"])
def test_many_steps_reach_the_least_loss_there_is(code, rows):
    problem = replace(PROBLEM, row_hessian=rows)
    plain = Ldlq().round(problem, code)
    refitted = RefittedTables(Ldlq(), 2000).round(problem, code)
    assert torch.equal(refitted.codes, plain.codes)
    least = normal_equations(problem, code, plain)
    # The tables are float16.
    assert least * (1 - 1e-6) <= problem.loss(refitted.w_hat) < 1.002 * least
    assert least < 0.995 * problem.loss(plain.w_hat)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_every_step_helps_and_few_do_most(code):
    losses = [PROBLEM.loss(RefittedTables(Ldlq(), steps).round(PROBLEM, code).w_hat) for steps in (1, 3, 10, 100)]
    plain = PROBLEM.loss(Ldlq().round(PROBLEM, code).w_hat)
    assert losses[0] < plain
    assert losses == sorted(losses, reverse=True)
    assert plain - losses[2] > 0.6 * (plain - losses[3])


def test_eight_bits_stay_eight_bits():
    code = VectorCodebook(2, 4, dtype="int8")
    rounded = RefittedTables(Ldlq()).round(PROBLEM, code)
    book = rounded.side["codebook"]
    assert torch.equal(book, book.round().clamp(-127, 127))
    assert PROBLEM.loss(rounded.w_hat) < PROBLEM.loss(Ldlq().round(PROBLEM, code).w_hat)


def test_eight_bits_cost_little():
    """A codebook in 8 bits moves no vector by more than half a step of the largest entry over 127."""
    coarse, fine = (VectorCodebook(2, 6, dtype=dtype, importance="none") for dtype in ("int8", "float16"))
    books = [code.books(code.fit(PROBLEM), "codebook") for code in (coarse, fine)]
    assert float((books[0] - books[1]).abs().max()) <= 0.505 * float(books[1].abs().max()) / 127
    losses = [PROBLEM.loss(Nearest().round(PROBLEM, code).w_hat) for code in (coarse, fine)]
    assert losses[0] < 1.05 * losses[1]


def test_codes_and_tables_may_take_turns():
    code = CODES["vectors in groups, two stages"]
    once = RefittedTables(Ldlq())
    twice = RefittedTables(CoordinateDescent(once))
    assert PROBLEM.loss(twice.round(PROBLEM, code).w_hat) < PROBLEM.loss(once.round(PROBLEM, code).w_hat)


def test_works_where_columns_are_visited_in_another_order():
    static = replace(make_recipe("gptqt", {"bits": 2}), transform=StaticOrder())
    refitted = replace(static, rounder=RefittedTables(static.rounder))
    losses = [solve(recipe, PROBLEM).stats["loss"] for recipe in (static, refitted)]
    assert losses[1] < losses[0]


def test_nothing_to_fit_changes_nothing():
    blind = LayerProblem(PROBLEM.weight, torch.zeros(48, 48, dtype=torch.float64))
    for problem, code in ((blind, CODES["vectors"]), (PROBLEM, Lookup(ClusteredLevels(8)))):
        refitted, plain = (rounder.round(problem, code) for rounder in (RefittedTables(Nearest()), Nearest()))
        assert bool(torch.isfinite(refitted.w_hat).all())
        assert problem.loss(refitted.w_hat) <= problem.loss(plain.w_hat)
        assert problem is PROBLEM or torch.equal(refitted.w_hat, plain.w_hat)


def test_codes_without_tables_are_refused():
    with pytest.raises(BadRequest, match=r"linear in its tables.*MidriseGrid is none. Use the rounder inside"):
        RefittedTables(Ldlq()).round(PROBLEM, MidriseGrid(3))
    with pytest.raises(BadRequest, match="steps=0"):
        RefittedTables(Ldlq(), 0)


def test_gptvq_updates_its_codebooks():
    losses = [
        solve(make_recipe("gptvq", {"group_size": 16, "updates": steps}), PROBLEM).stats["loss"] for steps in (0, 10)
    ]
    assert losses[1] < losses[0]
    assert close(PROBLEM.weight, solve(make_recipe("gptvq", {"bits": 4, "group_size": 48}), PROBLEM).dequantize(), 0.3)
