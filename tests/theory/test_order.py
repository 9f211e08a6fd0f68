"""Act-order by permuting the problem and static order by visiting are the same where nothing depends on places."""

import pytest
import torch

from laws.problems import correlated
from lowbit.codes import IntegerGrid, SearchedRange
from lowbit.core.layer import quantize_layer
from lowbit.core.random import stream
from lowbit.core.recipe import Recipe
from lowbit.rounding import Ldlq
from lowbit.statistics import SecondMoment
from lowbit.transforms import ActOrder, StaticOrder


@pytest.mark.parametrize(
    "code",
    [IntegerGrid(3), IntegerGrid(2, symmetric=True), IntegerGrid(4, "tensor"), IntegerGrid(3, range=SearchedRange())],
    ids=repr,
)
def test_act_order_without_groups_is_static_order(code):
    for seed in range(500, 506):
        problem = correlated(seed)
        stored, visited = (
            quantize_layer(problem, Recipe("order", SecondMoment(), order, code, Ldlq()), stream(0, "order"))
            for order in (ActOrder(), StaticOrder())
        )
        assert torch.equal(stored.codes, visited.codes[:, stored.transform.right.index])
        assert torch.equal(stored.dequantize(), visited.dequantize())
        assert set(stored.tensors()) - set(visited.tensors()) == {"order"}


def test_static_order_rounds_the_columns_with_the_largest_diagonal_first():
    """The first column visited is rounded to nearest."""
    problem, code = correlated(507), IntegerGrid(3, 8, scales="static")
    layer = quantize_layer(problem, Recipe("order", SecondMoment(), StaticOrder(), code, Ldlq()), stream(0, "order"))
    first = problem.hessian.diagonal().argmax().view(1)
    nearest = code.encode(problem.weight[:, first], code.fit(problem), first)[0]
    assert torch.equal(layer.codes[:, first], nearest)
