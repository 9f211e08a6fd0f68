"""Bilevel scales: one setting for layers of all widths, and the bits that SpQR counts."""

import pytest

from laws.problems import correlated
from laws.statements import solve
from lowbit.codes import Bilevel, Lookup, SuperBlocks
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.recipes import make_recipe


@pytest.mark.parametrize(("columns", "count"), [(256, 16), (640, 10), (16, 1), (272, 1), (11008, 16)])
def test_super_blocks_hold_the_most_groups_that_divide_a_row(columns, count):
    code = Bilevel(3).at((8, columns))
    assert code == Lookup(SuperBlocks(3, 3, count), 16)
    assert bits_per_weight(code.fields((8, columns)), (8, columns)) == pytest.approx(
        3 + 2 * 3 / 16 + 32 / (16 * count), abs=2 * 7 / columns
    )


def test_layers_that_groups_do_not_fill_are_refused():
    with pytest.raises(BadRequest, match=r"group_size=16.*40 inputs.*Use 10 or 20"):
        Bilevel(3).at((8, 40))
    with pytest.raises(BadRequest, match="scale_bits=0"):
        Bilevel(3, scale_bits=0)
    with pytest.raises(BadRequest, match="group_size=0"):
        Bilevel(3, 0)


def test_small_scales_are_worth_their_bits():
    """Groups of 16 with scales of 3 bits are better than the groups that cost as much with scales of 16."""
    problem, shape = correlated(0, 16, 256), (16, 256)
    bilevel, plain = make_recipe("spqr", {"bits": 3}), make_recipe("optq", {"bits": 3, "group_size": 32})
    layers = [solve(recipe, problem).stats for recipe in (make_recipe("spqr"), plain)]
    codes = [bits_per_weight(recipe.code_at(shape).fields(shape), shape) for recipe in (bilevel, plain)]
    assert codes[0] < codes[1]
    assert layers[0]["loss"] < layers[1]["loss"]
