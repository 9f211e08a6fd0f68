"""The sparse product against its reference and the dense one."""

import pytest
import torch

from lowbit.kernels.sparse_product import product, product_reference


def matrix(n, k, entries, seed=0):
    generator = torch.Generator().manual_seed(seed)
    at = torch.randperm(n * k, generator=generator)[:entries].sort().values
    value = torch.randn(entries, generator=generator)
    dense = torch.zeros(n * k).index_put((at,), value).view(n, k)
    counts = torch.bincount(at // k, minlength=n)
    return (torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]), (at % k).int(), value), dense


@pytest.mark.parametrize(("n", "k", "entries"), [(1, 1, 1), (6, 24, 3), (40, 30, 1200), (64, 512, 300)])
@pytest.mark.parametrize("tokens", [0, 1, 3, 70])
def test_equals_the_dense_product(n, k, entries, tokens):
    stored, dense = matrix(n, k, entries)
    x = torch.randn(tokens, k, generator=torch.Generator().manual_seed(1))
    for run in (product, product_reference):
        torch.testing.assert_close(run(*stored, x), x @ dense.T, rtol=1e-4, atol=1e-4)


def test_one_thread_or_many_give_the_same():
    stored, _ = matrix(256, 512, 40_000)
    x = torch.randn(60, 512, generator=torch.Generator().manual_seed(1))
    rows = torch.cat([product(*stored, row[None]) for row in x])
    assert torch.equal(product(*stored, x), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_other_types_and_gradients_take_the_reference(dtype):
    stored, dense = matrix(12, 20, 50)
    x = torch.randn(5, 20, dtype=dtype, requires_grad=True)
    y = product(*stored, x)
    assert y.dtype == dtype
    y.sum().backward()
    torch.testing.assert_close(x.grad[0].float(), dense.sum(0), rtol=2e-2, atol=2e-2)
