"""Reports as pages: one HTML file each, that opens without a network and carries everything it shows.

    record (plain data) -> report.json as it is, report.html through a template

Everything from outside (names, text, commands) is escaped by the template engine; the only markup that is passed
through is the figure drawn here. Pages follow the reader's choice of light or dark.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowbit.core.limit import MOST_EIGENVALUES
from lowbit.formats.files import write_bytes_atomically, write_json_atomically
from lowbit.report import numbers
from lowbit.report.card import write_card
from lowbit.report.grid import DISTANCE, RELATIVE_LOSS, layer_grid, worst_first

Record = Mapping[str, Any]
"""A run as plain data; see `write_report`."""

_WORST = 3
"""Layers of which the report draws histograms."""

_KEPT_NAMED = 3
"""Kinds of tensors that stayed as they were which the budget names."""


def write_report(record: Record, folder: Path) -> None:
    """Write report.json, report.html and the model card into `folder`, each whole or not at all.

    record: lowbit_version, command, model (source, architecture, parameters, bytes), recipe_name, recipe (as data),
    calibration (source, samples, sequence_length, tokens, seed, digest), layers (name, shape [N, K], recipe, the stats
    of `core.layer.QuantizedLayer`, tokens, seconds, outcomes), left_alone (name, shape, reason), size (before, after
    in bytes, bits_per_weight, bits_per_parameter, parts of `evaluation.size.byte_budget`), seconds (total and its
    parts), versions; where known also citations (BibTeX), peak_memory_bytes, check (max_logit_difference), measures
    (`evaluation.Measures.to_dict`) and continuations (prompt, original, quantized).
    """
    page = render(
        "report.html",
        record=record,
        recipe=json.dumps(record["recipe"], indent=2),
        budget=_budget(record),
        worst=[_spread(layer) for layer in worst_first(record["layers"], DISTANCE)[:_WORST]],
        divergences=_divergences(record.get("measures")),
        continuations=[_continued(one) for one in record.get("continuations", ())],
        distances=layer_grid(record["layers"], DISTANCE),
        losses=layer_grid(record["layers"], RELATIVE_LOSS),
        layers=worst_first(record["layers"], DISTANCE),
        wide=sum(layer["shape"][1] > MOST_EIGENVALUES for layer in record["layers"]),
        eigenvalues=MOST_EIGENVALUES,
        outcomes=_outcomes(record["layers"]),
        left_alone=_left_alone(record["left_alone"]),
    )
    write_json_atomically(folder / "report.json", record)
    write_bytes_atomically(folder / "report.html", page.encode())
    write_card(folder, record)


def demo_report(rows: Sequence[Mapping[str, Any]], texts: Mapping[str, str], path: Path) -> None:
    """One page over several quantizations of a model.

    rows: recipe, bits, bits_per_weight, bytes, perplexity, kl (nats per token), agreement (0 to 1), seconds.
    texts: what each model wrote after the same prompt, by its label, the original first.
    """
    from lowbit.report.figures import pareto_svg  # matplotlib takes a second to import; most commands draw nothing

    figure = Markup(pareto_svg(rows))
    write_bytes_atomically(path, render("demo.html", rows=rows, figure=figure, texts=_compared(texts)).encode())


def render(template: str, **values: Any) -> str:
    """A page from a template of `lowbit.report`; what is not Markup is escaped."""
    environment = Environment(
        loader=PackageLoader("lowbit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": numbers.size,
        "count": numbers.count,
        "duration": numbers.duration,
        "digits": numbers.digits,
        "share": numbers.share,
        "estimate": numbers.estimate,
    }
    return environment.get_template(template).render(**values)


def _budget(record: Record) -> list[dict[str, Any]]:
    """Bytes by part, those of quantized layers with their bits per weight; of what stayed, the largest by name."""
    weights = sum(n * k for n, k in (layer["shape"] for layer in record["layers"]))
    rows: list[dict[str, Any]] = []
    rest = 0
    for entry in record["size"]["parts"]:
        kept = entry["part"] == "not quantized"
        if kept and sum(row["kept"] for row in rows) == _KEPT_NAMED:
            rest += entry["bytes"]
            continue
        of = f" ({entry['part']})" if entry["part"] in ("transform", "side-car") else ""
        bits = None if kept else 8 * entry["bytes"] / weights
        rows.append({"name": entry["field"] + of, "bytes": entry["bytes"], "bits": bits, "kept": kept})
    if rest:
        rows.append({"name": "other tensors", "bytes": rest, "bits": None, "kept": True})
    return sorted(rows, key=lambda row: row["kept"])


def _spread(layer: Record) -> dict[str, Any]:
    """A layer's histograms as bars; counts run over decades, so their heights are logarithms."""
    return {
        "layer": layer,
        **{
            name: {"bars": _bars([math.log1p(count) for count in layer[name]["counts"]]), "end": layer[name]["high"]}
            for name in ("weights", "errors")
        },
    }


def _divergences(measures: Record | None) -> dict[str, Any] | None:
    """The distribution of single tokens' divergence as bars over whole decades, empty ones at the ends left out."""
    if not measures or not measures["divergence"]:
        return None
    found = measures["divergence"]["kl_histogram"]
    first, last = round(found["low"]), round(found["high"])
    per_decade = len(found["counts"]) // (last - first)
    counts = list(found["counts"])
    while len(counts) > per_decade and not any(counts[:per_decade]):
        counts, first = counts[per_decade:], first + 1
    while len(counts) > per_decade and not any(counts[-per_decade:]):
        counts, last = counts[:-per_decade], last - 1
    return {"bars": _bars(counts), "ticks": [numbers.digits(10.0**decade, 1) for decade in range(first, last + 1)]}


def _bars(heights: Sequence[float]) -> list[float]:
    """Heights as percentages of the largest."""
    largest = max(heights) or 1
    return [round(100 * height / largest, 2) for height in heights]


def _continued(one: Record) -> dict[str, Any]:
    texts = {"original": one["original"], "quantized": one["quantized"]}
    return {"prompt": one["prompt"], "texts": _compared(texts)}


def _outcomes(layers: Sequence[Record]) -> list[dict[str, Any]]:
    """Outcomes of one kind together, the most frequent first, with where they happened and what."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for layer in layers:
        for outcome in layer["outcomes"]:
            groups.setdefault((outcome["kind"], outcome["remedy"]), []).append((layer["name"], outcome["detail"]))
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [{"kind": kind, "remedy": remedy, "places": places} for (kind, remedy), places in ordered]


def _left_alone(entries: Sequence[Record]) -> dict[str, list[Record]]:
    by_reason: dict[str, list[Record]] = {}
    for entry in entries:
        by_reason.setdefault(entry["reason"], []).append(entry)
    return by_reason


def _compared(texts: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(label, what it shares with the original from the start on, the rest) of each text."""
    original = next(iter(texts.values()), "")
    shared = [_first_difference(original, text) for text in texts.values()]
    return [(label, text[:end], text[end:]) for (label, text), end in zip(texts.items(), shared, strict=True)]


def _first_difference(a: str, b: str) -> int:
    pairs = zip(a, b, strict=False)
    return next((place for place, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
