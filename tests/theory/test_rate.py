"""6 dB per bit: each bit halves the step, and so quarters the mean squared error."""

import pytest
import torch

from lowbit.codes import IntegerGrid
from lowbit.core.problem import LayerProblem
from lowbit.rounding import Nearest

WEIGHT = torch.randn(32, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mean_squared_error(code: IntegerGrid) -> float:
    problem = LayerProblem(WEIGHT, torch.eye(512, dtype=torch.float64))
    return float((Nearest().round(problem, code).w_hat - WEIGHT).square().mean())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", ["row", 64, "tensor"])
def test_six_decibels_per_bit(group_size, symmetric):
    bits = torch.arange(3, 9, dtype=torch.float64)
    errors = [mean_squared_error(IntegerGrid(int(b), group_size, symmetric, scale_dtype="float32")) for b in bits]
    logs = torch.tensor(errors, dtype=torch.float64).log2()
    slope = float(((bits - bits.mean()) * logs).sum() / (bits - bits.mean()).square().sum())
    assert slope == pytest.approx(-2, abs=0.12)


def test_error_is_that_of_a_uniform_quantizer():
    """s^2 / 12 at high rate."""
    code = IntegerGrid(6, scale_dtype="float32")
    problem = LayerProblem(WEIGHT, torch.eye(512, dtype=torch.float64))
    scale = code.fit(problem)["scale"]
    assert mean_squared_error(code) == pytest.approx(float(scale.square().mean()) / 12, rel=0.03)
