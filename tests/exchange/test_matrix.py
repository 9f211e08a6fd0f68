"""The table of docs/formats.md, cell by cell: exact can be stored, lossy cannot but can be rounded, no can neither."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from exchange.folders import solved
from lowbit.core.errors import BadRequest
from lowbit.core.layer import QuantizedLayer
from lowbit.exchange.catalogue import EXPORTS, formats_for, objection
from lowbit.exchange.requantize import Requantize
from lowbit.recipes import CATALOGUE, make_recipe

SHAPE = (128, 256)


def settings_of(text: str) -> dict[str, object]:
    words = {"true": True, "false": False}
    pairs = (pair.split("=") for pair in filter(None, text.split(", ")))
    return {name: int(value) if value.isdigit() else words.get(value, value) for name, value in pairs}


@cache
def table() -> dict[str, tuple[str, ...]]:
    """Recipe, as text, to its cells."""
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    lines = text.partition("| recipe | ")[2].partition("\n\n")[0].splitlines()
    assert lines[0].split(" | ") == [*EXPORTS[:-1], f"{EXPORTS[-1]} |"]
    rows = {}
    for line in lines[2:]:
        recipes, *cells = line.strip("| ").split(" | ")
        rows |= dict.fromkeys(re.findall(r"`([^`]+)`", recipes), tuple(cells))
    return rows


@cache
def layer(recipe: str) -> QuantizedLayer | None:
    """A layer of that recipe; None where a weight and its Hessian are not all that it asks for."""
    name, settings = re.fullmatch(r"(\w+)(?:\((.*)\))?", recipe).groups()
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    try:
        return solved(weight, make_recipe(name, settings_of(settings or "")))
    except BadRequest:
        return None


@pytest.mark.parametrize("recipe", sorted(table()))
def test_a_row(recipe):
    found = layer(recipe)
    zero = None if found is None else found.side.get("zero")
    cells = dict(zip(EXPORTS, table()[recipe], strict=True))
    possible = {"exact": True, "exact*": zero is not None and bool((zero > 0).all()), "lossy": False, "no": False}
    expected = {name for name, cell in cells.items() if possible[cell]}
    assert expected == (set(formats_for(found)) if found is not None else set())
    for format in (format for format, cell in cells.items() if cell == "no"):
        with pytest.raises(BadRequest, match="Nothing can be rounded again"):
            Requantize.into(format, 4, [SHAPE])
    for format in (format for format, cell in cells.items() if cell == "lossy" and found is not None):
        assert objection(format, Requantize.into(format, 4, [SHAPE]).layer(found)) is None


def test_every_recipe_has_a_row():
    assert {row.partition("(")[0] for row in table()} == set(CATALOGUE)
