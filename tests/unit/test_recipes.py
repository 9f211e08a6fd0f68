"""Recipes from names, settings and data: what is wrong is named, with the nearest that is right."""

import pytest

from lowbit.codes import HessianRange, IntegerGrid, MinMax, SearchedRange
from lowbit.core.errors import BadRequest
from lowbit.core.recipe import Recipe
from lowbit.recipes import CATALOGUE, OTHER_NAMES, from_dict, from_toml, make_recipe, to_dict, to_toml
from lowbit.rounding import Ldlq, Nearest
from lowbit.statistics import Isotropic, SecondMoment
from lowbit.transforms import ActOrder, NoTransform, StaticOrder


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("optqq", {}, "No recipe named 'optqq'. Did you mean optq"),
        ("ldlq", {}, "No recipe named 'ldlq'. It is how optq rounds"),
        ("gptaq", {}, "No recipe named 'gptaq'. It is not here.*statistic=CrossMoment"),
        ("zzz", {}, "No recipe named 'zzz'. .lowbit recipes. lists them"),
        ("optq", {"bit": 3}, "no setting 'bit'. Did you mean bits"),
        ("optq", {"groupsize": 3}, "no setting 'groupsize'. Did you mean group_size"),
        ("rtn", {"damping": 0.1}, "Recipe rtn has no setting 'damping'.*It has: bits, group_size"),
        ("optq", {"bits": 9}, "bits=9.*1 to 8"),
        ("optq", {"bits": "three"}, "optq: bits must be a whole number; 'three' was given"),
        ("optq", {"damping": "much"}, "damping must be a number; 'much' was given"),
        ("optq", {"range": "max"}, 'range must be "minmax", "mse" or "hessian"; .max. was given'),
        ("optq", {"refresh": "layer"}, 'refresh must be "input" or "block"'),
        ("rtn", {"group_size": -2}, "group_size=-2"),
    ],
)
def test_bad_names_and_settings(name, settings, message):
    with pytest.raises(BadRequest, match=message):
        make_recipe(name, settings)


def test_the_names_of_the_field_make_the_same_recipes():
    assert make_recipe("gptq", {"bits": 3, "group_size": 32}) == make_recipe("optq", {"bits": 3, "group_size": 32})
    assert make_recipe("quip#") == make_recipe("quip_sharp")
    assert OTHER_NAMES.keys().isdisjoint(CATALOGUE)
    for other, own in OTHER_NAMES.items():
        assert f'"{other}"' in CATALOGUE[own].__doc__  # so that `lowbit recipes` shows it


def test_settings_choose_the_parts():
    optq = make_recipe("optq", {"bits": 3, "group_size": 32, "symmetric": True, "damping": 0.1, "range": "mse"})
    assert optq == Recipe(
        "optq", SecondMoment(), NoTransform(), IntegerGrid(3, 32, True, SearchedRange()), Ldlq(0.1), refresh="input"
    )
    rtn = make_recipe("rtn")
    assert (rtn.statistic, rtn.rounder, rtn.code.range) == (Isotropic(), Nearest(), MinMax())
    assert make_recipe("rtn", {"range": "hessian"}).statistic == SecondMoment()
    assert make_recipe("rtn", {"range": "hessian"}).code.range == HessianRange()
    assert make_recipe("rtn", {"group_size": -1}) == rtn


def test_act_order_is_stored_only_where_it_must_be():
    def transform(**settings):
        return make_recipe("optq", {"act_order": True, **settings}).transform

    assert transform() == StaticOrder()
    assert transform(group_size="tensor") == StaticOrder()
    assert transform(group_size=32, static_groups=True) == StaticOrder()
    assert transform(group_size=32) == ActOrder()


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_recipe_says_what_it_is(name):
    doc = CATALOGUE[name].__doc__
    assert "Bits per weight:" in doc
    assert make_recipe(name).name == name


def test_names_with_any_characters_survive_toml():
    recipe = Recipe('a "quoted" \\ näme\nin two lines', SecondMoment(), NoTransform(), IntegerGrid(), Ldlq(1e-7))
    assert from_toml(to_toml(recipe)) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": {"part": "IntegerGird"}}, "recipe.code: no part named 'IntegerGird'.*IntegerGrid"),
        ({"code": {"part": "IntegerGrid", "bit": 3}}, "unknown field 'bit'.*bits"),
        ({"code": {"part": "Nearest"}}, "recipe.code"),
        ({"code": "IntegerGrid"}, "recipe.code"),
        ({"speed": 1}, "unknown field 'speed'"),
        ({"code": {"part": "IntegerGrid", "range": "mse"}}, "recipe.code.*range"),
        ({"rounder": {"part": "Ldlq", "damping": "x"}}, "recipe.rounder.*damping"),
    ],
)
def test_bad_data_is_refused_by_its_path(change, message):
    with pytest.raises(BadRequest, match=message):
        from_dict({**to_dict(make_recipe("optq")), **change})


def test_missing_parts_are_named():
    data = to_dict(make_recipe("optq"))
    del data["code"]
    with pytest.raises(BadRequest, match="code"):
        from_dict(data)


def test_text_that_is_not_toml_is_refused():
    with pytest.raises(BadRequest, match="not valid TOML"):
        from_toml("name = ")
