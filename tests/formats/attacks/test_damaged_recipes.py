"""Recipes come from files: whatever stands in one, it is refused by a BadRequest or is a recipe that can be asked."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.attacks.test_random_damage import anything, places
from lowbit.core.errors import BadRequest
from lowbit.formats.checkpoint import stored_layout
from lowbit.recipes import CATALOGUE, from_dict, make_recipe, to_dict

SHAPE = (64, 128)
RECIPES = {name: json.loads(json.dumps(to_dict(make_recipe(name)))) for name in CATALOGUE}
PLACES = [(name, place) for name, data in RECIPES.items() for place in places(data)[1:]]
large = st.sampled_from([-1, 0, 1, 64, 2**31, 2**63, 2**200, 1e308, -0.0])


def asked(name, place, value):
    """All that a loader asks of a recipe whose entry at `place` is `value`."""
    changed = copy.deepcopy(RECIPES[name])
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    try:
        recipe = from_dict(json.loads(json.dumps(changed)))
        stored_layout(recipe, SHAPE)
        recipe.check(SHAPE)
    except BadRequest:
        return


@settings(max_examples=250, deadline=None, derandomize=True)
@given(where=st.sampled_from(PLACES), value=anything | large)
def test_any_value_replaced_in_any_recipe(where, value):
    asked(*where, value)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, derandomize=True)
@given(where=st.sampled_from(PLACES), value=anything | large)
def test_many_more_values_replaced_in_any_recipe(where, value):
    asked(*where, value)
