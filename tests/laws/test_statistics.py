"""Laws of the statistics."""

import pytest
import torch

from laws.problems import TOKENS, WINDOWS, N, observed_windows
from laws.statements import (
    law_batches_do_not_matter,
    law_hessians_are_symmetric_psd,
    law_merge_is_one_pass,
    law_no_tokens_is_said,
    observed,
)
from laws.tables import STATISTICS

K = 12


@pytest.fixture(params=STATISTICS.values(), ids=STATISTICS)
def statistic(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


def weight_of(dtype):
    return torch.randn(N, K, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("law", [law_merge_is_one_pass, law_batches_do_not_matter, law_hessians_are_symmetric_psd])
def test_laws(statistic, law, dtype):
    law(statistic, observed_windows(dtype, K), weight_of(dtype))


def test_no_tokens(statistic):
    law_no_tokens_is_said(statistic, weight_of(torch.float32))


def test_merging_an_empty_state_changes_nothing(statistic):
    weight = weight_of(torch.float32)
    state = observed(statistic, observed_windows(torch.float32, K))
    merged = statistic.merge(statistic.init(K), state)
    assert statistic.tokens(merged) == (WINDOWS * TOKENS if statistic.reads else 0)
    assert torch.equal(statistic.problem(merged, weight)[0].hessian, statistic.problem(state, weight)[0].hessian)
