"""From what a user typed to recipes: `--set bits=3 --set 'rounder=Beam(16)' --override '*.down_proj:bits=4'`."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from lowbit.core.errors import BadRequest, require
from lowbit.core.recipe import Recipe
from lowbit.recipes import from_toml, make_recipe

Settings = dict[str, object]


_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def torch_type(name: str) -> torch.dtype:
    """The floating-point type of that name; raises BadRequest for others."""
    require(name in _TYPES, f"--dtype {name}: must be one of {', '.join(_TYPES)}.")
    return _TYPES[name]


def parse_settings(texts: Sequence[str]) -> Settings:
    """`name=value` pairs; a value is a number, true, false, or else a word. One text may hold several, by commas
    outside brackets."""
    settings: Settings = {}
    for text in (part for given in texts for part in _split(given)):
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise BadRequest(f"Setting {text!r}: must be name=value, such as bits=3.")
        settings[name.strip().replace("-", "_")] = _value(value.strip())
    return settings


def _split(text: str) -> list[str]:
    """The pieces of a text between the commas that are not inside brackets."""
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def _value(text: str) -> object:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def recipe_of(name: str, settings: Settings) -> Recipe:
    """A named recipe with settings, or the recipe of a .toml file."""
    if not name.endswith(".toml"):
        return make_recipe(name, settings)
    if settings:
        raise BadRequest(f"--set does not change {name}, which holds a whole recipe. Edit the file.")
    path = Path(name)
    if not path.is_file():
        raise BadRequest(f"--recipe {name}: no such file.")
    return from_toml(path.read_text(encoding="utf-8"))


def overrides_of(name: str, settings: Settings, texts: Sequence[str]) -> dict[str, Recipe]:
    """`PATTERN:setting=value[,...]` (settings on top of --set) or `PATTERN:recipe.toml`."""
    overrides = {}
    for text in texts:
        pattern, colon, change = text.rpartition(":")
        if not colon or not pattern:
            raise BadRequest(f"--override {text!r}: must be PATTERN:setting=value, such as '*.down_proj:bits=4'.")
        own = change.endswith(".toml")
        overrides[pattern] = recipe_of(change, {}) if own else recipe_of(name, settings | parse_settings([change]))
    return overrides
