"""The fast Hadamard product equals the dense matrix, in every type, and inverts itself."""

import math

import pytest
import torch

from lowbit.core.hadamard import hadamard_matrix
from lowbit.kernels.hadamard import mix, mix_reference

SHAPES = [
    (0, 1),
    (3, 1),
    (6, 1),
    (0, 12),
    (3, 12),
    (2, 20),
    (4, 28),
    (8, 12),
]  # the last is work enough for several threads


def dense(m: int) -> torch.Tensor:
    return hadamard_matrix(m).double() / math.sqrt(m)


@pytest.mark.parametrize(("power", "m"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_dense_matrix(power: int, m: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 2 * 2**power * m, generator=torch.Generator().manual_seed(1), dtype=dtype)
    expected = mix_reference(x.double(), power, dense(m)).to(dtype)
    torch.testing.assert_close(mix(x, power, dense(m)), expected, rtol=0, atol=200 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("power", "m"), SHAPES)
def test_transposed_undoes_it(power: int, m: int) -> None:
    x = torch.randn(4, 2**power * m, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    back = mix(mix(x, power, dense(m)), power, dense(m).T)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-13)


def test_input_is_left_alone() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    before = x.clone()
    mix(x, 6, dense(1))
    assert torch.equal(x, before)


def test_torch_path_under_autograd_agrees_and_differentiates() -> None:
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    y = mix(x, 2, dense(12))
    torch.testing.assert_close(y, mix(x.detach(), 2, dense(12)), rtol=0, atol=1e-14)
    upstream = torch.randn(3, 48, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(gradient, mix(upstream, 2, dense(12).T), rtol=0, atol=1e-13)


def test_half_types_keep_their_type() -> None:
    x = torch.randn(2, 96, generator=torch.Generator().manual_seed(6)).bfloat16()
    y = mix(x, 3, dense(12))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, mix(x.float(), 3, dense(12)).bfloat16(), rtol=0, atol=0)


def test_threads_do_not_change_a_bit() -> None:
    x = torch.randn(37, 2**4 * 172, generator=torch.Generator().manual_seed(7))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(mix(x, 4, dense(172)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
