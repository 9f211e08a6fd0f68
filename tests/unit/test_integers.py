"""lowbit's own recipe for integers: below what it is made of, and stored as every runtime of integers has it."""

from dataclasses import replace

import pytest
import torch

from laws.problems import correlated
from laws.statements import solve
from lowbit.core.errors import BadRequest
from lowbit.exchange.integers import integers_of, layer_of
from lowbit.recipes import make_recipe

PROBLEM = correlated(0, 24, 64)
GRIDS = {
    "2 bits in groups": {"bits": 2, "group_size": 16},
    "3 bits of rows": {"bits": 3, "group_size": "row"},
    "4 bits, symmetric": {"bits": 4, "group_size": 32, "symmetric": True},
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_loss_is_below_that_of_the_others_on_the_same_grid(grid):
    others = [
        make_recipe("optq", grid | {"act_order": True, "static_groups": True, "range": "hessian"}),
        make_recipe("qronos", grid | {"range": "hessian"}),
    ]
    if "symmetric" not in grid:
        others.append(make_recipe("beam", grid))
    found = solve(make_recipe("integers", grid), PROBLEM).stats
    for other in others:
        stats = solve(other, PROBLEM).stats
        assert found["bits_per_weight"] == stats["bits_per_weight"]
        assert found["loss"] < 0.99 * stats["loss"]


def test_every_turn_helps():
    grid = GRIDS["2 bits in groups"]
    losses = [solve(make_recipe("integers", grid | {"turns": turns}), PROBLEM).stats["loss"] for turns in (0, 1, 2)]
    assert losses[0] > losses[1] > losses[2]
    narrow = solve(make_recipe("integers", grid | {"turns": 0, "width": 1}), PROBLEM).stats["loss"]
    assert narrow > losses[0]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_other_tools_store_the_very_values(grid):
    layer = solve(make_recipe("integers", grid), PROBLEM)
    seen = integers_of(layer)
    assert seen.grid.in_order
    assert seen.grid.symmetric == ("symmetric" in grid)
    assert bool((seen.scale > 0).all())
    assert torch.equal(layer_of(seen, "gptq").dequantize(), layer.dequantize())


def test_a_row_without_signal_does_no_harm():
    weight = PROBLEM.weight.clone()
    weight[3] = 0
    weight[5, :16] = 0
    problem = replace(PROBLEM, weight=weight)
    values = solve(make_recipe("integers", GRIDS["2 bits in groups"]), problem).dequantize()
    assert bool(torch.isfinite(values).all())
    assert not bool(values[3].any())


def test_turns_cannot_be_negative():
    with pytest.raises(BadRequest, match="turns=-1"):
        make_recipe("integers", {"turns": -1})
