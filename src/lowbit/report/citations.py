"""Whom to cite: the papers behind a recipe, as BibTeX.

Found by the name of the recipe and of each part in it, so that a combination nobody has named cites all it is made of.
The entries are in `citations.bib`, found by their arXiv number. A new method is a name here and an entry there.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

_PAPERS: dict[str, tuple[str, ...]] = {
    # recipes
    "optq": ("2210.17323",),
    "quip": ("2307.13304",),
    "quip_sharp": ("2402.04396",),
    "qtip": ("2406.11235",),
    "exl3": ("2406.11235",),
    "owq": ("2306.02272",),
    "quantease": ("2309.01885",),
    "quantease_outlier": ("2309.01885",),
    "spqr": ("2306.03078",),
    "easyquant": ("2403.02775",),
    "gwq": ("2411.00850",),
    "lorc": ("2303.08302",),
    "lq_lora": ("2311.12023",),
    "qronos": ("2505.11695",),
    "rsq": ("2503.01820",),
    "boa": ("2406.13474",),
    "gpfq": ("2010.15979", "2201.11113"),
    "magr": ("2406.00800",),
    "optq_stochastic": ("2508.04853",),
    "squeezellm": ("2306.07629",),
    "gptvq": ("2402.15319",),
    "vptq": ("2409.17066",),
    "llm_fp4": ("2310.16836",),
    "ternary": ("1605.04711",),
    "normal_float": ("2305.14314",),
    "nupes": ("2301.09858", "2308.05600"),
    "jlcm": ("2309.17361",),
    "pb_llm": ("2310.00034",),
    "dgq": ("2310.04836",),
    "finequant": ("2308.09723",),
    "block_float": ("2310.10537",),
    "dint": ("2311.05161",),
    "zeroquant_fp6": ("2312.08583", "2401.14112"),
    "db_llm": ("2402.11960",),
    "slim_llm": ("2405.14917",),
    "lcq": ("2405.20973",),
    "gptqt": ("2407.02891",),
    "smoothquant": ("2211.10438",),
    "awq": ("2306.00978",),
    # parts
    "Ldlq": ("2210.17323", "2307.13304"),
    "Optq": ("2210.17323",),
    "CrossMoment": ("2505.11695",),
    "AttentionAware": ("2406.13474",),
    "Rescale": ("2307.13304",),
    "RandomKronecker": ("2307.13304",),
    "RandomizedHadamard": ("2402.04396",),
    "E8P": ("2402.04396",),
    "BitshiftTrellis": ("2406.11235",),
    "CoordinateDescent": ("2307.13304",),
    "QuantEase": ("2309.01885",),
    "Gpfq": ("2010.15979", "2201.11113"),
    "MagR": ("2406.00800",),
    "KeptColumns": ("2306.02272",),
}


def citations(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """BibTeX entries of the papers behind recipes given as data (`core.recipe.to_dict`), each once, in their order."""
    names = [name for recipe in recipes for name in (recipe["name"], *_part_names(recipe))]
    papers = dict.fromkeys(paper for name in names for paper in _PAPERS.get(name, ()))
    return [_entries()[paper] for paper in papers]


def _part_names(value: Any) -> Iterator[str]:
    """The class names of all parts inside a recipe's data."""
    if isinstance(value, Mapping):
        if "part" in value:
            yield value["part"]
        for held in value.values():
            yield from _part_names(held)
    elif isinstance(value, list):
        for held in value:
            yield from _part_names(held)


@functools.cache
def _entries() -> dict[str, str]:
    """The entries of `citations.bib` by arXiv number."""
    text = files("lowbit.report").joinpath("citations.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in text.split("\n\n")]
    return {re.findall(r"eprint = \{([\d.]+)\}", entry)[0]: entry for entry in entries}
