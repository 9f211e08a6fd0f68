"""The recipes that lowbit knows, as `lowbit recipes` shows them."""

import inspect
from typing import Any

from rich.console import Console
from rich.table import Table

from lowbit.cli.requests import recipe_of
from lowbit.core.fields import bits_per_weight
from lowbit.core.recipe import Recipe
from lowbit.recipes import CATALOGUE, method, to_dict, to_toml

_SHAPE = (4096, 4096)


def list_recipes() -> None:
    """A line for each recipe."""
    console, table = Console(), Table("recipe", "what it does", "bits per weight", box=None)
    for name in CATALOGUE:
        table.add_row(name, _about(name).partition("\n")[0], f"{_bits(recipe_of(name, {})):.3f}")
    console.print(table)
    console.print("\nBits per weight at default settings for a [4096, 4096] layer. More: lowbit recipes NAME")


def show_recipe(name: str) -> None:
    """One recipe in full; raises BadRequest where there is none of that name."""
    console, recipe = Console(), recipe_of(name, {})
    settings = ", ".join(f"{setting}={value}" for setting, value in _settings(name).items())
    console.print(f"{name}({settings})\n", markup=False, highlight=False)
    console.print(_about(name), markup=False, highlight=False)
    console.print(f"\nAt its default settings, [4096, 4096] takes {_bits(recipe):.4f} bits per weight:\n")
    console.print(to_toml(recipe), markup=False)


def recipes_data(name: str | None) -> list[dict[str, Any]]:
    """JSON-ready data of one recipe, or of all."""
    return [_data(known) for known in ([name] if name else CATALOGUE)]


def _data(name: str) -> dict[str, Any]:
    recipe = recipe_of(name, {})
    return {
        "name": name,
        "about": _about(name),
        "settings": _settings(name),
        "parts": to_dict(recipe),
        "bits_per_weight": _bits(recipe),
    }


def _settings(name: str) -> dict[str, Any]:
    return {setting.name: setting.default for setting in inspect.signature(method(name)).parameters.values()}


def _about(name: str) -> str:
    return inspect.getdoc(method(name)) or ""


def _bits(recipe: Recipe) -> float:
    return bits_per_weight(recipe.fields(_SHAPE), _SHAPE)
