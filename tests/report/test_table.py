"""Tables for the terminal: everything is in them, and nothing given is read as markup."""

import pytest
from rich.console import Console

from lowbit.report import checkpoints_table, comparison_table, layers_table, limits_table, measures_table
from report.records import layer, layers, measures, outcome, rows


def shown(table, width=160):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_measures():
    text = shown(measures_table(measures()))
    for part in ("stdlib: 12 windows of 128 tokens", "6.71 ± 0.13", "0.0713 ± 0.0012", "99.9 %", "3.10 MB", "0.293"):
        assert part in text


@pytest.mark.parametrize("missing", [{"divergence": None}, {"size": None}, {"tasks": {}}])
def test_measures_that_were_not_taken(missing):
    assert "6.71 ± 0.13" in shown(measures_table(measures() | missing))


def test_layers():
    data = layers()
    data[0]["outcomes"] = [outcome("dead inputs")]
    data[1]["nearest_relative_loss"] = None
    text = shown(layers_table(data))
    assert all(one["name"] in text for one in data)
    assert text.count("dead inputs") == 1
    first, second = text.splitlines()[3:5]
    assert first.split()[4:9] == ["3.25", "0.300", "%", "0.200", "%"]
    assert second.split()[4:7] == ["3.25", "0.300", "%"]


def test_columns_that_say_nothing_are_left_out():
    assert not {"recipe", "outcomes"} & set(shown(layers_table(layers())).splitlines()[1].split())
    mixed = [layer("a"), layer("b", outcomes=[outcome()]) | {"recipe": "rtn"}]
    assert {"recipe", "outcomes"} < set(shown(layers_table(mixed)).splitlines()[1].split())


def test_limits():
    data = [layer("near", above=0.25), layer("without", above=None)]
    data[1] |= {"bound": None, "clamped": None}
    near, without = shown(limits_table(data)).splitlines()[-3:-1]
    assert near.split() == ["near", "3.25", "0.120", "0.0849", "0.25", "0.400", "0.120", "%"]
    assert without.split() == ["without", "3.25", "0.120", "0"]


def test_comparison_shows_names_as_they_are():
    data = [dict(row, recipe="[red]x[/red]") for row in rows()]
    assert shown(comparison_table(data)).count("[red]x[/red]") == len(data)


def test_checkpoints_fit_a_narrow_terminal_and_the_best_are_marked():
    row = {"label": "folder", "recipe": "quip_sharp", "bits_per_weight": 2.0, "bytes": 10**9, "best": True}
    row |= {"kl": 0.4, "kl_error": 0.0078, "agreement": 0.642, "perplexity": {"mean": 15.5, "error": 1.1}}
    lines = shown(checkpoints_table([row, row | {"label": "a-name-that-is-folded", "best": False}]), 80).splitlines()
    assert " ".join(lines[3].split()) == "folder * 2.00 0.4000 ± 0.0078 64.2 % 1.00 GB 15.50 quip_sharp"
    assert "*" not in lines[4]
    assert all(len(line) <= 80 for line in lines)
