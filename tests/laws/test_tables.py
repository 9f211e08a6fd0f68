"""The tables are complete: every part and recipe that lowbit exports has a row."""

import dataclasses

import pytest

from laws.lookups import LOOKUP_PARTS
from laws.statements import law_part_is_a_value
from laws.tables import (
    CODES,
    COMBINATIONS,
    CRITERIA,
    IMPORTANCES,
    RANGES,
    RECIPES,
    ROUNDERS,
    ROW_MOMENTS,
    SHAPED,
    SIDE_CARS,
    STATISTICS,
    TOY_RECIPES,
    TRANSFORMS,
)
from lowbit import codes, rounding, sidecars, statistics, transforms
from lowbit.recipes import CATALOGUE

TABLES = {
    "statistics": STATISTICS,
    "importances": {repr(part): part for part in IMPORTANCES},
    "row moments": {repr(part): part for part in ROW_MOMENTS},
    "transforms": TRANSFORMS,
    "codes": CODES,
    "shaped codes": SHAPED,
    "ranges": RANGES,
    "parts of table look-up": {repr(part): part for part in LOOKUP_PARTS},
    "rounders": ROUNDERS,
    "criteria": CRITERIA,
    "side-cars": SIDE_CARS,
    "recipes": RECIPES | COMBINATIONS | TOY_RECIPES,
}
PARTS = {f"{kind}: {name}": part for kind, table in TABLES.items() for name, part in table.items()}


@pytest.mark.parametrize(
    ("folder", "rows"),
    [
        (statistics, [*STATISTICS.values(), *IMPORTANCES, *ROW_MOMENTS]),
        (transforms, TRANSFORMS.values()),
        (codes, [*CODES.values(), *SHAPED.values(), *RANGES.values(), *LOOKUP_PARTS]),
        (rounding, ROUNDERS.values()),
        (sidecars, [*SIDE_CARS.values(), *CRITERIA.values()]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_exported_part_has_a_row(folder, rows):
    exported = {part for part in vars(folder).values() if isinstance(part, type) and dataclasses.is_dataclass(part)}
    assert exported <= {type(row) for row in rows}


def test_every_recipe_has_a_row():
    assert {recipe.name for recipe in RECIPES.values()} == set(CATALOGUE)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_parts_are_values(part):
    law_part_is_a_value(part)


def test_parts_with_other_settings_differ():
    assert len(set(CODES.values())) == len(CODES)
    assert len(set(ROUNDERS.values())) == len(ROUNDERS)
