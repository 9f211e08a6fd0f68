"""Several checkpoints on one page: who is best, what differs, and what does not compare."""

import re

import pytest

from lowbit.core.errors import BadRequest
from lowbit.report import write_comparison
from lowbit.report.comparison import comparison_rows, recipe_differences
from report.records import HOSTILE, measures, record
from report.test_page import Page, assert_nothing_from_outside


def checkpoint(bits, kl, recipe="optq", **changes):
    found = measures()
    found["divergence"] = found["divergence"] | {"kl": {"mean": kl, "error": kl / 50}}
    size = record()["size"] | {"bits_per_weight": bits}
    data = {"name": recipe, "code": {"part": "IntegerGrid", "bits": int(bits)}}
    assigned = {"recipe": data, "overrides": [], "targets": [], "ignore": []}
    return record(recipe_name=recipe, size=size, measures=found, assignment=assigned) | changes


RECORDS = {
    "four": checkpoint(4.25, 0.01),
    "three": checkpoint(3.25, 0.05),
    "plain": checkpoint(3.25, 0.2, "rtn"),
    "two": checkpoint(2.25, 0.3),
    "worse": checkpoint(3.5, 0.05),
}


def test_rows_run_by_size_and_the_best_are_those_nobody_beats():
    rows = comparison_rows(RECORDS)
    assert [row["label"] for row in rows] == ["two", "three", "plain", "worse", "four"]
    assert [row["label"] for row in rows if row["best"]] == ["two", "three", "four"]


def test_twins_are_both_best():
    rows = comparison_rows({"a": checkpoint(3.0, 0.1), "b": checkpoint(3.0, 0.1)})
    assert all(row["best"] for row in rows)


def test_differences_name_every_setting_that_differs_and_no_other():
    seeded = checkpoint(3.25, 0.1, calibration=record()["calibration"] | {"seed": 7, "digest": "0000"})
    found = recipe_differences({"three": RECORDS["three"], "plain": RECORDS["plain"], "seeded": seeded})
    assert found == [("recipe.name", ["optq", "rtn", "optq"]), ("seed", ["0", "0", "7"])]
    assert recipe_differences({"a": RECORDS["three"], "b": RECORDS["three"]}) == []
    other = checkpoint(3.25, 0.1)
    other["assignment"] = other["assignment"] | {"ignore": ["*.q_proj"]}
    assert recipe_differences({"a": other, "b": RECORDS["three"]}) == [("ignore", ["[*.q_proj]", ""])]


def test_different_parts_are_shown_as_a_whole_and_like_ones_by_their_settings():
    def of(rounder):
        return checkpoint(3.25, 0.1, assignment={"recipe": {"name": "optq", "rounder": rounder}})

    ldlq = {"part": "Ldlq", "damping": 0.01, "tile": [8, 1]}
    beam = {"part": "Beam", "inner": {"part": "Ldlq", "damping": 0.02}}
    assert recipe_differences({"a": of(ldlq), "b": of(ldlq | {"damping": 0.1})}) == [
        ("recipe.rounder.damping", ["0.01", "0.1"])
    ]
    assert recipe_differences({"a": of(ldlq), "b": of(beam)}) == [
        ("recipe.rounder", ["Ldlq(damping=0.01, tile=[8, 1])", "Beam(inner=Ldlq(damping=0.02))"])
    ]


def test_page_shows_every_checkpoint(tmp_path):
    path = tmp_path / "compare.html"
    write_comparison(RECORDS, path)
    html = path.read_text(encoding="utf-8")
    assert_nothing_from_outside(html)
    words = Page(html).words()
    assert "two 2.25 0.3000 ± 0.0060 91.2 % 3.10 MB 6.71 ± 0.13 optq" in words
    assert "recipe.code.bits 2 3 3 3 4" in words
    assert re.findall(r'<tr class="best"><th scope="row">(.*?)<', html) == ["two", "three", "four"]
    assert "two, three, four: none of the others is both" in words


def test_names_are_not_read_as_markup(tmp_path):
    write_comparison({HOSTILE: checkpoint(3.0, 0.1, HOSTILE), "b": RECORDS["two"]}, tmp_path / "compare.html")
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert page.elements.count("script") == 1
    assert "".join(page.text).count(HOSTILE) >= 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": None}, "`lowbit report odd`"),
        ({"measures": measures() | {"divergence": None}}, "`lowbit report odd`"),
        ({"measures": measures() | {"text": "wiki"}}, "128 tokens of wiki"),
        ({"measures": measures() | {"windows": 11}}, "11 windows"),
        ({"model": record()["model"] | {"parameters": 7}}, "of 7 parameters"),
    ],
)
def test_what_does_not_compare_is_refused(changes, message):
    with pytest.raises(BadRequest, match=re.escape(message)):
        comparison_rows({"a": RECORDS["two"], "odd": checkpoint(3.0, 0.1) | changes})
