"""OPTQ, with its factor of the inverse, is LDLQ: the same codes, whatever the options (QuIP, theorem 6)."""

import pytest
import torch

from laws.problems import correlated
from laws.statements import solve
from lowbit.codes import HessianRange, IntegerGrid, SearchedRange
from lowbit.core.errors import BadRequest
from lowbit.core.random import stream
from lowbit.core.recipe import Recipe
from lowbit.core.records import FittedTransform
from lowbit.rounding import Ldlq, Optq
from lowbit.statistics import SecondMoment
from lowbit.transforms import ActOrder, GroupOrder, NoTransform, StaticOrder

PROBLEMS = [correlated(100 + seed) for seed in range(10)] + [correlated(200, n=3, k=120), correlated(201, n=17, k=72)]

CODES = {
    "row": IntegerGrid(4),
    "row symmetric": IntegerGrid(3, symmetric=True),
    "tensor": IntegerGrid(4, "tensor"),
    "groups": IntegerGrid(3, 8),
    "groups symmetric": IntegerGrid(3, 12, symmetric=True),
    "static groups": IntegerGrid(2, 8, scales="static"),
    "groups searched": IntegerGrid(2, 24, range=SearchedRange(steps=10)),
    "groups by hessian": IntegerGrid(2, 12, range=HessianRange(steps=10)),
    "one bit": IntegerGrid(1, 6, symmetric=True),
}
TRANSFORMS = {"own order": NoTransform(), "act-order": ActOrder(), "static order": StaticOrder()}


PAIRS = {
    f"{code_name}, {name}": (code, transform)
    for code_name, code in CODES.items()
    for name, transform in TRANSFORMS.items()
    if name != "static order" or code.refit_every == 0
} | {"groups, whole groups in order": (CODES["groups"], GroupOrder(8))}


@pytest.mark.parametrize("damping", [0.01, 0.3])
@pytest.mark.parametrize(("code", "transform"), PAIRS.values(), ids=PAIRS)
def test_same_codes(code, transform, damping):
    for problem in PROBLEMS:
        ours = solve(Recipe("ldlq", SecondMoment(), transform, code, Ldlq(damping)), problem)
        theirs = solve(Recipe("optq", SecondMoment(), transform, code, Optq(damping)), problem)
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.side["scale"], theirs.side["scale"])
        assert torch.equal(ours.dequantize(), theirs.dequantize())


def test_scales_that_change_on_the_way_cannot_be_visited_out_of_order():
    recipe = Recipe("ldlq", SecondMoment(), StaticOrder(), CODES["groups"], Ldlq())
    with pytest.raises(BadRequest, match='scales="static", or ActOrder'):
        solve(recipe, PROBLEMS[0])


@pytest.mark.parametrize("name", ["groups", "groups symmetric"])
def test_whole_groups_in_order_are_the_layer_with_its_inputs_renumbered(name):
    code = CODES[name]
    for problem in PROBLEMS:
        order = GroupOrder(code.refit_every).fit(problem, stream(0, "order")).order
        visited = solve(Recipe("ldlq", SecondMoment(), GroupOrder(code.refit_every), code, Ldlq()), problem)
        renumbered = FittedTransform(right=order).forward(problem)
        there = solve(Recipe("ldlq", SecondMoment(), NoTransform(), code, Ldlq()), renumbered)
        assert torch.equal(visited.dequantize()[:, order.index], there.dequantize())
        groups = order.index.view(-1, code.refit_every) // code.refit_every
        assert torch.equal(visited.side["scale"][:, groups[:, 0]], there.side["scale"])
        largest = problem.hessian.diagonal()[order.index].view(-1, code.refit_every)
        assert bool((largest.diff() <= 0).all())
        assert bool((largest[:, 0].diff() <= 0).all())


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_slab_width_changes_nothing(code):
    for problem in PROBLEMS[:4]:
        expected = Ldlq(slab=128).round(problem, code)
        for slab in (1, 2, 5, 7, 8, 16):
            rounded = Ldlq(slab=slab).round(problem, code)
            assert torch.equal(rounded.codes, expected.codes)
            assert torch.equal(rounded.w_hat, expected.w_hat)
