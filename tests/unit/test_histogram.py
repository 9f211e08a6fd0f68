"""Histograms count every value once."""

import torch

from lowbit.core.histogram import around_zero, histogram


def test_values_beyond_the_ends_count_in_the_end_bins():
    found = histogram(torch.tensor([-9.0, 0.1, 0.4, 0.6, 5.0, 6.0]), 0.0, 1.0, 2)
    assert found == {"low": 0.0, "high": 1.0, "counts": [3, 3]}


def test_zero_lies_in_the_middle_bin():
    found = around_zero(torch.tensor([[0.0, 0.0, 0.01], [-2.0, 1.9, 0.0]]), bins=5)
    assert found == {"low": -2.0, "high": 2.0, "counts": [1, 0, 4, 0, 1]}
    assert around_zero(torch.zeros(3), bins=3)["counts"] == [0, 3, 0]
