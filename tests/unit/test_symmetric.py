"""Large symmetric matrices: in bands as in one piece, whatever their size."""

import gc

import pytest
import torch

from lowbit.core.linalg import unit_upper_factor
from lowbit.core.recall import Recall
from lowbit.core.symmetric import (
    from_upper_bands,
    mix_in_any_product,
    mix_in_product,
    quadratic_form,
    symmetrize,
    turn,
    upper_bands,
)

SIZES = [1, 2, 5, 511, 512, 513, 1025, 1100]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("k", SIZES)
def test_a_product_is_mixed_in(k):
    x, before = random(7, k), random(9, k)
    mean = before.T @ before
    expected = 0.25 * mean + 0.5 * x.T @ x
    mix_in_product(mean, 0.25, 0.5, x, x)
    torch.testing.assert_close(mean, expected)
    assert torch.equal(mean, mean.T)


@pytest.mark.parametrize("k", SIZES)
def test_a_product_that_is_not_symmetric_is_mixed_in(k):
    x, y, mean = random(700, k), random(700, k + 1)[:, :k], random(k, k)
    expected = 0.25 * mean + 0.5 * x.T @ y
    mix_in_any_product(mean, 0.25, 0.5, x, y)
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("k", SIZES)
def test_turned_and_made_symmetric_in_place(k):
    matrix = random(k, k)
    expected = (matrix + matrix.T) / 2
    assert torch.equal(turn(matrix.clone()), matrix.flip(0, 1))
    assert torch.equal(symmetrize(matrix), expected)
    assert torch.equal(matrix, expected)


@pytest.mark.parametrize("k", SIZES)
def test_half_of_a_matrix_is_all_of_it(k):
    matrix = symmetrize(random(k, k))
    half = upper_bands(matrix)
    assert len(half) <= k * (k + 512) / 2 or k <= 512
    assert torch.equal(from_upper_bands(half, k), matrix)


@pytest.mark.parametrize("k", SIZES)
def test_quadratic_form_is_the_trace(k):
    x, root = random(3, k), random(k, k)
    matrix = root @ root.T
    assert quadratic_form(x, matrix) == pytest.approx(float((x @ matrix * x).sum()), rel=1e-10)


def test_a_result_is_recalled_for_the_same_hessian_and_setting_as_long_as_it_lives():
    recall, done = Recall(), []

    def found(hessian, setting):
        return recall.of(hessian, setting, lambda: done.append(setting) or len(done))

    a, b = random(3, 3), random(3, 3)
    assert [found(a, 1), found(a, 1), found(a, 2), found(b, 2), found(a, 2)] == [1, 1, 2, 3, 4]
    a[0, 0] = 0
    assert found(a, 2) == 5
    del a
    gc.collect()
    assert recall._last is None


def test_layers_with_the_same_inputs_share_a_factor():
    x = random(64, 8)
    hessian = x.T @ x
    assert unit_upper_factor(hessian, 0.01) is unit_upper_factor(hessian, 0.01)
    assert unit_upper_factor(hessian.clone(), 0.01) is not unit_upper_factor(hessian, 0.01)
