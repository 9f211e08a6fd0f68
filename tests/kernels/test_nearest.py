"""The nearest codebook vector equals the one found from all distances."""

import pytest
import torch

from lowbit.kernels.nearest import nearest, nearest_reference


# (4, 300) is work enough for several threads.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "count"), [(1, 1), (1, 5), (2, 16), (4, 300), (8, 33)])
def test_equals_all_distances(d: int, count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(d * count)
    x = torch.randn(2000, d, generator=generator, dtype=dtype)
    codebook = torch.randn(count, d, generator=generator, dtype=dtype)
    weight = torch.rand(2000, d, generator=generator, dtype=dtype) + 0.01
    index, distance = nearest(x, weight, codebook)
    cost = (weight[:, None] * (x[:, None] - codebook).square()).sum(-1)
    torch.testing.assert_close(distance, cost.amin(1))
    torch.testing.assert_close(cost.gather(1, index.long()[:, None])[:, 0], cost.amin(1))
    assert float((index == nearest_reference(x, weight, codebook)).double().mean()) > 0.99


def test_the_first_of_equals_wins_and_weights_may_be_expanded() -> None:
    codebook = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    index, _ = nearest(torch.zeros(3, 2), torch.ones(1, 2).expand(3, 2), codebook)
    assert index.tolist() == [1, 1, 1]


def test_a_weight_can_change_the_choice() -> None:
    codebook = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    for weight, chosen in (([1.0, 1.0], 0), ([9.0, 1.0], 1)):
        index, _ = nearest(torch.zeros(1, 2), torch.tensor([weight]), codebook)
        assert index.tolist() == [chosen]
