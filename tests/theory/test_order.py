"""Act-order by permuting the problem and static order by visiting are the same where nothing depends on places."""

import pytest
import torch

from laws.problems import correlated
from lowbit.codes import IntegerGrid, SearchedRange
from lowbit.core.errors import BadRequest
from lowbit.core.layer import quantize_layer
from lowbit.core.linalg import unit_upper_factor
from lowbit.core.random import stream
from lowbit.core.recipe import Recipe
from lowbit.core.records import FittedTransform
from lowbit.rounding import Ldlq
from lowbit.statistics import SecondMoment
from lowbit.transforms import ActOrder, StaticOrder
from lowbit.transforms.order import by_diagonal, by_norm, by_pivot


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


def test_each_pivot_is_the_least_of_those_before_it():
    """Backwards: no column that comes earlier had a smaller variance given the later ones; so d_j sums to less."""
    sums = {by_diagonal: 0.0, by_pivot: 0.0}
    for seed in range(510, 520):
        problem = correlated(seed, k=12)
        H = FittedTransform(right=by_pivot(problem)).forward(problem).hessian
        for j in range(12):
            later = torch.linalg.solve(H[j + 1 :, j + 1 :], H[j + 1 :, : j + 1])
            given = (H[: j + 1, : j + 1] - H[: j + 1, j + 1 :] @ later).diagonal()
            assert float(given[j]) <= float(given.min()) * (1 + 1e-9)
        for order in sums:
            ordered = FittedTransform(right=order(problem)).forward(problem)
            sums[order] += float(unit_upper_factor(ordered.hessian, 0.0).diagonal.sum() / problem.hessian.trace())
    assert sums[by_pivot] < sums[by_diagonal]


@pytest.mark.parametrize("order", [by_diagonal, by_norm, by_pivot])
def test_orders_name_each_column_once(order):
    """For dead inputs and fewer tokens than inputs too; a diagonal H gives the order of its diagonal."""
    problem = correlated(508, tokens=7)
    problem.hessian[[3, 9]], problem.hessian[:, [3, 9]] = 0, 0
    index = order(problem).index
    assert torch.equal(index.sort().values, torch.arange(24))
    assert set(index[-2:].tolist()) == {3, 9}
    flat = torch.ones_like(problem.weight)
    diagonal = type(problem)(flat, torch.rand(24, generator=torch.Generator().manual_seed(0)).double().diag())
    assert torch.equal(order(diagonal).index, diagonal.hessian.diagonal().argsort(descending=True))


def test_norms_count_the_weights():
    problem = correlated(509)
    problem.weight[:, 5] *= 1e4
    assert int(by_norm(problem).index[0]) == 5


@pytest.mark.parametrize("part", [ActOrder, StaticOrder])
def test_other_orders_are_refused(part):
    with pytest.raises(BadRequest, match=r"by='size'.*diagonal, norm, pivot"):
        part("size")
