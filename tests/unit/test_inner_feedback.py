"""Tiles of a trellis that are settled a few columns at a time keep the feedback that wide tiles lose."""

from dataclasses import replace

import pytest
import torch

from laws.problems import correlated
from lowbit.codes import BitshiftTrellis, Padded, TailBiting
from lowbit.core.errors import BadRequest
from lowbit.core.parts import encode_tiles, joint_columns
from lowbit.rounding import Ldlq

WHOLE = TailBiting(BitshiftTrellis(L=8, k=2, tile=(16, 8), values="gaussian"))
SETTLED = replace(WHOLE, joint=1)


def test_settling_columns_lowers_the_loss():
    """With neighbours that correlate at 0.9, a tile of eight columns loses half of what feedback gains."""
    tries = [correlated(seed, n=16, k=32, dtype=torch.float32) for seed in range(8)]
    whole, by_fours, settled = (
        sum(problem.relative_loss(Ldlq().round(problem, code).w_hat) for problem in tries)
        for code in (WHOLE, replace(WHOLE, joint=4), SETTLED)
    )
    assert settled < by_fours < whole
    assert settled < 0.8 * whole


def test_nothing_changes_where_all_columns_are_joint():
    problem = correlated(1, n=16, k=32, dtype=torch.float32)
    side, columns = WHOLE.fit(problem), torch.arange(32)
    feedback = torch.triu(torch.full((32, 32), 0.1), 1)
    arguments = (problem.weight, problem.weight, feedback, side, columns)
    for code in (WHOLE, replace(WHOLE, joint=8)):
        codes, values = code.encode_with_feedback(*arguments)
        expected = encode_tiles(code, *arguments)
        assert torch.equal(codes, expected[0])
        assert torch.equal(values, expected[1])


@pytest.mark.parametrize("code", [SETTLED, replace(WHOLE, joint=3), Padded(SETTLED)], ids=str)
def test_settled_paths_are_closed_and_decode_to_their_values(code):
    problem = correlated(2, n=13, k=32, dtype=torch.float32)
    rounded = Ldlq().round(problem, code)
    assert torch.equal(code.decode(rounded.codes, rounded.side, torch.arange(32)), rounded.w_hat)


def test_the_last_columns_of_a_tile_still_aim_at_their_targets():
    """A path whose first column is fixed has its other columns near what they should be: no feedback, no difference
    in error between settling and not."""
    problem = replace(correlated(3, n=16, k=32, dtype=torch.float32), hessian=torch.eye(32, dtype=torch.float64))
    whole, settled = (problem.relative_loss(Ldlq().round(problem, code).w_hat) for code in (WHOLE, SETTLED))
    assert settled == pytest.approx(whole, rel=0.05)


def test_joint_columns_are_asked_of_the_code():
    assert [joint_columns(code) for code in (WHOLE, SETTLED, Padded(SETTLED), WHOLE.trellis)] == [8, 1, 1, 8]


def test_joint_columns_that_do_not_fit_are_refused():
    with pytest.raises(BadRequest, match="joint=9"):
        replace(WHOLE, joint=9)
    with pytest.raises(BadRequest, match="V=2"):
        TailBiting(BitshiftTrellis(L=8, k=2, V=2, tile=(15, 2), values="gaussian"), joint=1)
