"""The range searches against a plain search in numpy, one group and one candidate at a time."""

import numpy as np
import pytest
import torch

from laws.problems import correlated
from lowbit.codes import HessianRange, IntegerGrid, SearchedRange
from lowbit.core.linalg import unit_upper_factor


def brute_force(group, cost_of, bits, symmetric, fractions):
    """Scale and zero point with the least cost; the first of equals, from the full range down."""
    top, best = 2**bits - 1, (np.inf, None, None)
    low, high = min(group.min(), 0.0), max(group.max(), 0.0)
    if symmetric:
        high = np.abs(group).max()
        low = -high
    for fraction in fractions:
        scale = max(float(np.float16((fraction * high - fraction * low) / top)), 2.0**-24)
        zero = 2.0 ** (bits - 1) if symmetric else float(np.clip(np.round(-fraction * low / scale), 0, top))
        codes = np.clip(np.round(group / scale) + zero, 0, top)
        cost = cost_of(np.abs(scale * (codes - zero) - group))
        if cost < best[0]:
            best = (cost, scale, zero)
    return best[1:]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searched_range(bits, symmetric):
    search = SearchedRange(smallest=0.3, steps=15, exponent=2.4)
    problem = correlated(0, n=5, k=32)
    side = IntegerGrid(bits, 16, symmetric, search).fit(problem)
    for index, group in enumerate(problem.weight.numpy().reshape(10, 16)):
        expected = brute_force(group, lambda e: (e**2.4).sum(), bits, symmetric, np.linspace(1, 0.3, 15))
        assert (side["scale"].view(-1)[index].item(), side["zero"].view(-1)[index].item()) == expected


def test_hessian_range():
    search = HessianRange(smallest=0.3, steps=15, damping=0.01)
    problem = correlated(1, n=5, k=32)
    side = IntegerGrid(2, 16, range=search).fit(problem)
    cost = unit_upper_factor(problem.hessian, 0.01).diagonal.numpy().reshape(2, 16)
    for index, group in enumerate(problem.weight.numpy().reshape(10, 16)):
        importance = cost[index % 2]
        expected = brute_force(group, lambda e, d=importance: (d * e**2).sum(), 2, False, np.linspace(1, 0.3, 15))
        assert (side["scale"].view(-1)[index].item(), side["zero"].view(-1)[index].item()) == expected


@pytest.mark.parametrize("group_size", ["row", "tensor", 8])
def test_a_search_never_does_worse_than_the_full_range_by_its_own_measure(group_size):
    for seed in range(10):
        problem = correlated(seed)
        columns = torch.arange(problem.shape[1])
        errors = {}
        for name, code in {
            "full": IntegerGrid(2, group_size),
            "searched": IntegerGrid(2, group_size, range=SearchedRange(exponent=2.0)),
        }.items():
            errors[name] = (code.encode(problem.weight, code.fit(problem), columns)[1] - problem.weight).square().sum()
        assert errors["searched"] <= errors["full"]
