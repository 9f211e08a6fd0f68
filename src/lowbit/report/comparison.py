"""Several checkpoints of one model on one page: accuracy against size, a table, and what their recipes differ in.

All of them must have been measured on the same text: numbers of different texts do not compare.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lowbit.core.errors import BadRequest, require
from lowbit.formats.files import write_text_atomically
from lowbit.report.page import Record, render

Row = Mapping[str, Any]


def comparison_rows(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """A row for each measured record by its label, smallest first: recipe (its format where nobody knows how it was
    made), bits_per_weight, bytes, perplexity, kl and its error, agreement, seconds or None, and best: whether no other
    is both at most as large and at most as far from the original. Distances to the limit are left out: each is by the
    loss that a recipe's own statistic defines.

    Raises BadRequest where records are of several models or were measured on several texts.
    """
    _check_same_ground(records)
    rows = sorted((_row(label, record) for label, record in records.items()), key=lambda row: row["bits_per_weight"])
    return [row | {"best": not any(_dominates(other, row) for other in rows)} for row in rows]


def recipe_differences(records: Mapping[str, Record]) -> list[tuple[str, list[str]]]:
    """(path of a setting, its value in each record) where recipes differ; "" where a recipe has no such setting.

    Settings of one kind of part are compared one by one, different parts as a whole. records: those with a recipe.
    """
    settings = [record["assignment"] | record["calibration"] for record in records.values()]
    return [(path, values) for path, values in _differences(settings, "") if not path.endswith("digest")]


def write_comparison(records: Mapping[str, Record], path: Path) -> None:
    """Write the page; records: by label, each with measures against the original, of a run or of `review.judge`."""
    from lowbit.report.figures import pareto_svg  # matplotlib takes a second to import; most commands draw nothing

    rows = comparison_rows(records)
    known = {row["label"]: records[row["label"]] for row in rows if "assignment" in records[row["label"]]}
    measures = next(iter(records.values()))["measures"]
    page = render(
        "compare.html",
        source=next(iter(records.values()))["model"]["source"],
        measures=measures,
        original=measures["divergence"]["perplexity"],
        rows=rows,
        best=[row["label"] for row in rows if row["best"]],
        figure=Markup(pareto_svg(rows)),
        labels=list(known),
        differences=recipe_differences(known),
        strangers=[row["label"] for row in rows if row["label"] not in known],
    )
    write_text_atomically(path, page)


def _row(label: str, record: Record) -> dict[str, Any]:
    measures = record["measures"]
    return {
        "label": label,
        "recipe": record["recipe_name"] if "recipe_name" in record else record["format"],
        "bits_per_weight": record["size"]["bits_per_weight"],
        "bytes": record["size"]["after"],
        "perplexity": measures["perplexity"],
        "kl": measures["divergence"]["kl"]["mean"],
        "kl_error": measures["divergence"]["kl"]["error"],
        "agreement": measures["divergence"]["agreement"]["mean"],
        "seconds": record["seconds"]["total"] if "seconds" in record else None,
    }


def _dominates(a: Row, b: Row) -> bool:
    better = a["bits_per_weight"] < b["bits_per_weight"] or a["kl"] < b["kl"]
    return better and a["bits_per_weight"] <= b["bits_per_weight"] and a["kl"] <= b["kl"]


def _check_same_ground(records: Mapping[str, Record]) -> None:
    grounds: dict[tuple[str, ...], str] = {}
    for label, record in records.items():
        measures = record.get("measures")
        if not measures or not measures["divergence"]:
            raise BadRequest(f"{label} has not been measured against its original. Run `lowbit report {label}`.")
        model = f"{record['model']['architecture']} of {record['model']['parameters']} parameters"
        grounds[model, f"{measures['windows']} windows of {measures['length']} tokens of {measures['text']}"] = label
    places = "; ".join(f"{label}: {', '.join(ground)}" for ground, label in grounds.items())
    require(
        len(grounds) == 1,
        f"These checkpoints do not compare ({places}). Give checkpoints of one model, and measure them alike with "
        "`lowbit report DIR --text ... --windows ...`.",
    )


def _differences(values: Sequence[Any], path: str) -> Iterator[tuple[str, list[str]]]:
    """(path, each as text) of what differs in plain data, as deep inside as all have the same parts there."""
    if all(isinstance(value, Mapping) for value in values) and len({value.get("part") for value in values}) == 1:
        for key in dict.fromkeys(key for value in values for key in value):
            yield from _differences([value.get(key, "") for value in values], f"{path}.{key}" if path else key)
    elif any(value != values[0] for value in values):
        yield path, [_as_text(value) for value in values]


def _as_text(value: Any) -> str:
    """Plain data as a recipe's parts are written: Beam(width=16, damping=0.01)."""
    if isinstance(value, Mapping):
        settings = ", ".join(f"{key}={_as_text(held)}" for key, held in value.items() if key != "part")
        return f"{value.get('part', '')}({settings})"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_text, value))}]" if value else ""
    return str(value)
