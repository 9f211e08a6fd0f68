"""The second moment against numpy in float64."""

import numpy as np
import torch

from laws.problems import correlated_inputs
from lowbit.statistics import SecondMoment


def test_second_moment_is_the_mean_of_outer_products():
    x = correlated_inputs(1000, 16, torch.Generator().manual_seed(0))
    statistic = SecondMoment()
    state = statistic.init(16)
    for chunk in x.float().split(64):
        state = statistic.update(state, {"inputs": chunk})
    hessian = statistic.problem(state, torch.ones(2, 16))[0].hessian.numpy()
    expected = np.einsum("ti,tj->ij", x.numpy(), x.numpy()) / 1000
    assert np.linalg.norm(hessian - expected) <= 1e-6 * np.linalg.norm(expected)


def test_many_tokens_lose_nothing():
    """A running sum in float32 would stop growing; in float64 a thousand equal chunks are a thousand chunks."""
    chunk = torch.full((4096, 2), 100.003)
    statistic = SecondMoment()
    state = statistic.init(2)
    for _ in range(1000):
        state = statistic.update(state, {"inputs": chunk})
    once = statistic.update(statistic.init(2), {"inputs": chunk})
    weight = torch.ones(1, 2)
    assert statistic.tokens(state) == 4_096_000
    torch.testing.assert_close(
        statistic.problem(state, weight)[0].hessian, statistic.problem(once, weight)[0].hessian, rtol=1e-12, atol=0
    )
