"""Checks of the checkers: a part broken on purpose must fail the law it breaks."""

from dataclasses import dataclass, replace

import pytest
import torch

from laws.problems import correlated, observed_windows
from laws.statements import (
    law_batches_do_not_matter,
    law_codes_decode_to_w_hat,
    law_encode_is_idempotent,
    law_encode_is_nearest,
    law_feedback_pays,
    law_identity_hessian_means_nearest,
    law_layer_survives_storage,
    law_merge_is_one_pass,
    law_missing_sensitivity_is_told_first,
    law_no_tokens_is_said,
    law_same_seed_same_bytes,
    law_side_car_pays,
    law_transform_preserves_function,
    law_transform_preserves_loss,
    solve,
)
from laws.toys import Codebook, Factors, LowRank, Rotated
from lowbit.codes import IntegerGrid
from lowbit.core.maps import Dense
from lowbit.core.problem import LayerProblem
from lowbit.core.recipe import Recipe
from lowbit.core.records import FittedTransform
from lowbit.rounding import Ldlq, Nearest
from lowbit.statistics import SecondMoment
from lowbit.statistics.second_moment import Moments
from lowbit.transforms import NoTransform

PROBLEM = correlated(0, dtype=torch.float32)


def fails():
    return pytest.raises(AssertionError)


class AveragesStates(SecondMoment):
    """Forgets that the runs differ in length."""

    def merge(self, a, b):
        return Moments((a.mean + b.mean) / 2, a.tokens + b.tokens)


class AveragesBatches(SecondMoment):
    """Forgets that batches differ in length."""

    def update(self, state, seen):
        return super().update(state, {"inputs": seen["inputs"] / len(seen["inputs"]) ** 0.5})


class SaysNothing(SecondMoment):
    """Gives a problem without a token and leaves it at that."""

    def problem(self, state, weight):
        return super().problem(state, weight)[0], ()


def test_statistics_laws_see_unweighted_means_and_silence():
    records, weight = observed_windows(torch.float64), torch.ones(2, 12, dtype=torch.float64)
    with fails():
        law_merge_is_one_pass(AveragesStates(), records, weight)
    with fails():
        law_batches_do_not_matter(AveragesBatches(), records, weight)
    with fails():
        law_no_tokens_is_said(SaysNothing(), weight)


class ClaimsOrthogonality(Rotated):
    """Inverts a sheared map by transposing it."""

    def _draw(self, d, rng):
        return torch.eye(d, dtype=torch.float64) + torch.randn(d, d, generator=rng, dtype=torch.float64).triu(1) / d


class ForgetsTheHessian(Rotated):
    """Rotates the weight by another matrix than the Hessian."""

    @dataclass(frozen=True, eq=False)
    class Fitted(FittedTransform):
        def forward(self, problem):
            return replace(super().forward(problem), hessian=problem.hessian)

    def _fitted(self, left, right):
        return self.Fitted(Dense(left, is_orthogonal=True), Dense(right, is_orthogonal=True))


def test_transform_laws_see_false_tags_and_a_forgotten_hessian():
    with fails():
        law_transform_preserves_function(ClaimsOrthogonality(), PROBLEM)
    with fails():
        law_transform_preserves_loss(ForgetsTheHessian(), PROBLEM)


@dataclass(frozen=True)
class RoundsDown(Codebook):
    """Takes the second nearest vector."""

    def encode(self, target, side, columns):
        n, w = target.shape
        vectors = target.reshape(n, w // 2, 2)
        distances = (vectors[:, :, None] - side["codebook"]).square().sum(-1)
        codes = distances.topk(2, largest=False).indices[..., 1]
        return codes.to(torch.uint8), self.decode(codes, side, columns)


def test_code_laws_see_a_code_that_is_not_nearest():
    with fails():
        law_encode_is_nearest(RoundsDown(), PROBLEM)
    with fails():
        law_encode_is_idempotent(RoundsDown(), PROBLEM)


@dataclass(frozen=True)
class LooksInSecret(IntegerGrid):
    """Fits by the sensitivity of weights and does not say so."""

    def fit(self, problem):
        problem.sensitivity_for(self)
        return super().fit(problem)


def test_code_laws_see_one_that_looks_in_secret():
    with fails():
        law_missing_sensitivity_is_told_first(LooksInSecret(), PROBLEM)


class PromisesMore(Ldlq):
    """Returns values a hair away from those stored."""

    def round(self, problem, code):
        rounded = super().round(problem, code)
        return replace(rounded, w_hat=rounded.w_hat * (1 + 1e-6))


class WritesInPlace(Nearest):
    def round(self, problem, code):
        rounded = super().round(problem, code)
        problem.weight[0, 0] += 1
        return rounded


def test_rounder_law_sees_a_hair_and_a_modified_input():
    with fails():
        law_codes_decode_to_w_hat(PromisesMore(), IntegerGrid(3), PROBLEM)
    with fails():
        law_codes_decode_to_w_hat(
            WritesInPlace(), IntegerGrid(3), LayerProblem(PROBLEM.weight.clone(), PROBLEM.hessian)
        )


class FeedsErrorsBackwards(Ldlq):
    """The wrong sign: later columns repeat the errors of earlier ones."""

    def round(self, problem, code):
        signs = torch.ones(len(problem.hessian), dtype=problem.hessian.dtype)
        signs[::2] = -1
        return super().round(LayerProblem(problem.weight, problem.hessian * signs * signs[:, None]), code)


class IgnoresTheDamping(Ldlq):
    """Rounds for a Hessian with a strange first column."""

    def round(self, problem, code):
        hessian = problem.hessian.clone()
        hessian[0, 0] += hessian[0, 1:].sum() + 1
        hessian[0, 1:], hessian[1:, 0] = 0.9, 0.9
        return super().round(LayerProblem(problem.weight, hessian), code)


def test_feedback_laws_see_wrong_feedback():
    with fails():
        law_feedback_pays(FeedsErrorsBackwards(), Nearest(), IntegerGrid(3), [correlated(seed) for seed in range(12)])
    with fails():
        law_identity_hessian_means_nearest(IgnoresTheDamping(), Nearest(), IntegerGrid(3), PROBLEM.weight)


class KeepsScalesUnrounded(IntegerGrid):
    """Solves with scales that the file cannot hold."""

    def fit(self, problem):
        side = super().fit(problem)
        return {**side, "scale": side["scale"] * (1 + 1e-5)}


@dataclass(frozen=True)
class Guesses:
    """Rounds at random, from the process's own stream."""

    def round(self, problem, code):
        noise = torch.rand_like(problem.weight) - 0.5
        return Nearest().round(LayerProblem(problem.weight + noise, problem.hessian), code)


def test_recipe_laws_see_lost_bits_and_unseeded_randomness():
    recipe = Recipe("broken", SecondMoment(), NoTransform(), KeepsScalesUnrounded(4), Nearest())
    with fails():
        law_layer_survives_storage(solve(recipe, PROBLEM))
    recipe = Recipe("broken", SecondMoment(), NoTransform(), IntegerGrid(4), Guesses())
    with fails():
        law_same_seed_same_bytes(recipe, PROBLEM)


class AddsTheError(LowRank):
    """A correction of the wrong sign."""

    def fit(self, problem, correction, w_hat):
        right = super().fit(problem, correction, w_hat)
        return Factors(-right.left, right.right)


def test_side_car_law_sees_a_harmful_correction():
    with fails():
        law_side_car_pays(AddsTheError(2), Nearest(), IntegerGrid(2), PROBLEM)
