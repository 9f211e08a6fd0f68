"""Every published method is cited with the papers that its docstring names, and every entry is whole."""

import inspect
import re

import pytest

from lowbit.core.recipe import to_dict
from lowbit.recipes import CATALOGUE, make_recipe
from lowbit.report.citations import _PAPERS, _entries, citations

_ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_recipe_cites_the_papers_of_its_docstring(name):
    cited = " ".join(citations([to_dict(make_recipe(name))]))
    named = set(_ARXIV.findall(inspect.getdoc(CATALOGUE[name])))
    missing = {paper for paper in named if f"{{{paper}}}" not in cited}
    assert not missing, f"add {missing} to report/citations.bib and to {name} in report/citations.py"


def test_parts_are_cited_whatever_the_recipe_is_called():
    data = to_dict(make_recipe("quip_sharp")) | {"name": "mine"}
    found = citations([data, data])
    assert [re.findall(r"\{(\w+),", entry)[0] for entry in found] == [
        "tseng2024quipsharp",
        "chee2023quip",
        "frantar2023optq",
    ]
    assert citations([to_dict(make_recipe("rtn"))]) == []


def test_entries_are_whole():
    entries = _entries()
    assert {paper for papers in _PAPERS.values() for paper in papers} <= entries.keys()
    keys = [re.match(r"@misc\{(\w+),\n", entry)[1] for entry in entries.values()]
    assert len(set(keys)) == len(keys)
    for entry in entries.values():
        assert entry.count("{") == entry.count("}")
        for field in ("title", "author", "year", "eprint"):
            assert entry.count(f"\n  {field} = {{") == 1
        assert " and " in entry
