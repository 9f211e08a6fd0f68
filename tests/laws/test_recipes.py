"""Laws of whole recipes: quantize a layer, store it, read it back."""

import pytest
import torch

from laws.problems import correlated, problems
from laws.statements import (
    law_bits_are_counted,
    law_inputs_are_unmodified,
    law_layer_survives_storage,
    law_same_seed_same_bytes,
    law_stats_are_true,
)
from laws.tables import COMBINATIONS, RECIPES, TOY_RECIPES
from lowbit.recipes import from_dict, from_toml, to_dict, to_toml

REAL = RECIPES | COMBINATIONS
ALL = REAL | TOY_RECIPES
FLOAT32, FLOAT64 = problems(torch.float32), problems(torch.float64)


@pytest.fixture(params=ALL.values(), ids=ALL)
def recipe(request):
    return request.param


def test_layer_survives_storage(recipe):
    for problem in FLOAT32.values():
        law_layer_survives_storage(recipe, problem)


def test_stats_are_true(recipe):
    for problem in [*FLOAT32.values(), FLOAT64["usual"], FLOAT64["row hessian"]]:
        law_stats_are_true(recipe, problem)


@pytest.mark.parametrize("law", [law_bits_are_counted, law_inputs_are_unmodified])
def test_solves(recipe, law):
    for problem in (FLOAT32["outliers"], FLOAT64["row hessian"]):
        law(recipe, problem)


def test_same_seed_same_bytes(recipe):
    """On a layer large enough that torch and numba use more than one thread."""
    law_same_seed_same_bytes(recipe, correlated(6, n=64, k=312, dtype=torch.float32))


@pytest.mark.parametrize("recipe", REAL.values(), ids=REAL)
def test_recipes_are_data(recipe):
    assert from_dict(to_dict(recipe)) == recipe
    assert from_toml(to_toml(recipe)) == recipe
