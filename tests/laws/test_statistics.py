"""Laws of the statistics."""

import pytest
import torch

from laws.problems import correlated_inputs
from laws.statements import law_chunking_does_not_matter, law_hessian_is_symmetric_psd, law_merge_is_one_pass
from laws.tables import STATISTICS

K = 12


@pytest.fixture(params=STATISTICS.values(), ids=STATISTICS)
def statistic(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def stream(request):
    generator = torch.Generator().manual_seed(3)
    x_float = correlated_inputs(50, K, generator)
    x = x_float + 0.1 * torch.randn(50, K, generator=generator, dtype=torch.float64)
    return x.to(request.param), x_float.to(request.param)


@pytest.fixture
def chunks(stream):
    return list(zip(stream[0].split([3, 30, 17]), stream[1].split([3, 30, 17]), strict=True))


WEIGHT = torch.randn(5, K, generator=torch.Generator().manual_seed(4))


def test_merge_is_one_pass(statistic, chunks):
    law_merge_is_one_pass(statistic, chunks, WEIGHT)


def test_chunking_does_not_matter(statistic, stream):
    law_chunking_does_not_matter(statistic, *stream, WEIGHT)


def test_hessian_is_symmetric_psd(statistic, chunks):
    law_hessian_is_symmetric_psd(statistic, chunks, WEIGHT)


def test_merging_an_empty_state_changes_nothing(statistic, chunks):
    state = statistic.init(K)
    for x, x_float in chunks:
        state = statistic.update(state, x, x_float)
    merged = statistic.merge(statistic.init(K), state)
    assert statistic.tokens(merged) == 50
    assert torch.equal(statistic.problem(merged, WEIGHT)[0].hessian, statistic.problem(state, WEIGHT)[0].hessian)
