"""Token importance: equal weights are the second moment, zeros and ones a subset; each importance by its formula."""

import pytest
import torch

from laws.problems import observed_windows, together
from lowbit.core.errors import BadRequest
from lowbit.statistics import (
    ActivationNorm,
    AttentionReceived,
    FirstTokens,
    SecondMoment,
    TokenRarity,
    Uniform,
    WeightedMoment,
)

RECORDS = observed_windows(torch.float32)
ALL = together(RECORDS)
WEIGHT = torch.ones(6, 12)


def problem_of(statistic, *records):
    state = statistic.init(12)
    for record in records:
        state = statistic.update(state, record)
    return statistic.problem(state, WEIGHT)


def test_equal_importance_is_the_second_moment_bit_for_bit():
    plain, weighted = problem_of(SecondMoment(), *RECORDS)[0], problem_of(WeightedMoment(Uniform()), *RECORDS)[0]
    assert torch.equal(weighted.hessian, plain.hessian)
    assert torch.equal(problem_of(WeightedMoment(minimum=1.0), *RECORDS)[0].hessian, plain.hessian)


def test_zeros_and_ones_are_a_subset():
    weighted, outcomes = problem_of(WeightedMoment(FirstTokens(2), minimum=0), *RECORDS)
    first = [{"inputs": record["inputs"][:2]} for record in RECORDS]
    assert not outcomes
    torch.testing.assert_close(weighted.hessian, problem_of(SecondMoment(), *first)[0].hessian, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("minimum", [0.0, 0.005, 0.3])
def test_weights_run_from_the_minimum_to_one_and_then_have_mean_one(minimum):
    x, norms = RECORDS[0]["inputs"].double(), RECORDS[0]["inputs"].double().norm(dim=1)
    r = minimum + (1 - minimum) * (norms - norms.min()) / (norms.max() - norms.min())
    expected = (x * (r / r.sum())[:, None]).T @ x
    found = problem_of(WeightedMoment(ActivationNorm(), minimum), RECORDS[0])[0].hessian
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_received_is_the_sum_over_heads_and_queries():
    received = AttentionReceived().of(RECORDS[2])
    attention = RECORDS[2]["attention"].double()
    expected = [sum(attention[0, h, q, t] for h in range(2) for q in range(5)) for t in range(5)]
    torch.testing.assert_close(received, torch.stack(expected))
    assert float(received.sum()) == pytest.approx(2 * 5)


def test_an_expert_takes_the_importance_of_its_tokens_from_their_places():
    rows = torch.tensor([1, 4, 7, 8, 22])
    routed = ALL | {"inputs": ALL["inputs"][rows], "places": ALL["places"][rows]}
    for importance in (AttentionReceived(), ActivationNorm(), TokenRarity(), FirstTokens(2)):
        assert torch.equal(importance.of(routed), importance.of(ALL)[rows])


def test_rare_tokens_count_more():
    assert torch.equal(TokenRarity().of(ALL), 1 / ALL["token_counts"].flatten().double())


def test_windows_without_importance_do_not_count_and_that_is_said():
    silent = RECORDS[0] | {"attention": torch.zeros_like(RECORDS[0]["attention"])}
    some, outcomes = problem_of(WeightedMoment(), silent, RECORDS[1])
    assert [outcome.kind for outcome in outcomes] == ["no importance"]
    assert torch.equal(some.hessian, problem_of(WeightedMoment(), RECORDS[1])[0].hessian)
    none, outcomes = problem_of(WeightedMoment(), silent)
    assert [outcome.kind for outcome in outcomes] == ["no importance", "no signal"]
    assert not none.hessian.any()


@pytest.mark.parametrize("minimum", [-0.1, 1.1, float("nan")])
def test_settings_out_of_range(minimum):
    with pytest.raises(BadRequest, match="must be"):
        WeightedMoment(minimum=minimum)
    with pytest.raises(BadRequest, match="must be"):
        FirstTokens(0)
