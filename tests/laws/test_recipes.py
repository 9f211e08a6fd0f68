"""Laws of whole recipes: quantize a layer, store it, read it back."""

import functools

import pytest
import torch

from laws.problems import correlated, problems
from laws.statements import (
    law_bits_are_counted,
    law_inputs_are_unmodified,
    law_layer_survives_storage,
    law_same_seed_same_bytes,
    law_stats_are_true,
    solve,
)
from laws.tables import COMBINATIONS, RECIPES, TOY_RECIPES
from lowbit.recipes import from_dict, from_toml, to_dict, to_toml

REAL = RECIPES | COMBINATIONS
ALL = REAL | TOY_RECIPES
DTYPES = (torch.float32, torch.float64)
PROBLEMS = {(dtype, name): problem for dtype in DTYPES for name, problem in problems(dtype).items()}
ALL_FLOAT32 = [key for key in PROBLEMS if key[0] == torch.float32]


@pytest.fixture(params=ALL.values(), ids=ALL)
def recipe(request):
    return request.param


@functools.cache
def solved(recipe, problem):
    """The layer of a problem, by its name, solved once for all laws."""
    return solve(recipe, PROBLEMS[problem])


def test_layer_survives_storage(recipe):
    for problem in ALL_FLOAT32:
        law_layer_survives_storage(solved(recipe, problem))


def test_stats_are_true(recipe):
    for problem in [*ALL_FLOAT32, (torch.float64, "usual"), (torch.float64, "row hessian")]:
        law_stats_are_true(solved(recipe, problem), PROBLEMS[problem])


SOME = (torch.float32, "outliers"), (torch.float64, "row hessian")


def test_bits_are_counted(recipe):
    for problem in SOME:
        law_bits_are_counted(solved(recipe, problem))


def test_inputs_are_unmodified(recipe):
    for problem in SOME:
        law_inputs_are_unmodified(recipe, PROBLEMS[problem])


def test_same_seed_same_bytes(recipe):
    """On a layer large enough that torch and numba use more than one thread."""
    law_same_seed_same_bytes(recipe, correlated(6, n=64, k=312, dtype=torch.float32))


@pytest.mark.parametrize("recipe", REAL.values(), ids=REAL)
def test_recipes_are_data(recipe):
    assert from_dict(to_dict(recipe)) == recipe
    assert from_toml(to_toml(recipe)) == recipe
