"""Products through oneDNN: the same numbers, on any number of threads, and only where no gradients are asked."""

import pytest
import torch
from torch import nn

from lowbit.core.products import FastLinear, rows_times
from lowbit.core.symmetric import mix_in_product


@pytest.mark.parametrize(("rows", "terms", "columns"), [(1, 64, 100), (7, 172, 256), (300, 640, 64), (64, 1100, 172)])
def test_products_are_those_of_float64_on_any_number_of_threads(rows, terms, columns):
    generator = torch.Generator().manual_seed(0)
    x, y, bias = (torch.randn(*shape, generator=generator) for shape in ((rows, terms), (columns, terms), (columns,)))
    expected, threads = x.double() @ y.double().T + bias.double(), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(rows_times(x, y, bias))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-4)
    assert all(torch.equal(found[0], other) for other in found)


def test_other_types_are_multiplied_as_ever():
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(rows_times(x, y), torch.nn.functional.linear(x, y))


def test_second_moments_are_as_close_as_products_of_pieces():
    x = torch.randn(1500, 300, generator=torch.Generator().manual_seed(0))
    mean = torch.zeros(300, 300, dtype=torch.float64)
    mix_in_product(mean, 0, 1, x, x)
    expected = x.double().T @ x.double()
    scale = expected.diagonal().sqrt()
    assert float(((mean - expected) / scale[:, None] / scale).abs().max()) < 1e-6
    assert torch.equal(mean, mean.T)


def test_linear_layers_multiply_fast_unless_gradients_are_asked(monkeypatch):
    called = []
    monkeypatch.setattr("lowbit.core.products.rows_times", lambda x, y, bias=None: called.append(1) or x @ y.T + bias)
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    with FastLinear():
        with torch.no_grad():
            layer(x)
        assert called
        layer(x).sum().backward()
    assert len(called) == 1
    assert layer.weight.grad is not None
