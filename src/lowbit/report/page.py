"""Reports as pages: one HTML file each, that opens without a network and carries everything it shows.

    record (plain data) -> report.json as it is, report.html through a template

Everything from outside (names, text, commands) is escaped by the template engine; the only markup that is passed
through is the figure drawn here, and the only script that a page's own policy lets run is `copy.js`, by its digest.
Nothing at all may be loaded. Pages follow the reader's choice of light or dark.
"""

import hashlib
import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowbit.core.limit import MOST_EIGENVALUES
from lowbit.formats.files import write_json_atomically, write_text_atomically
from lowbit.report import numbers
from lowbit.report.card import write_card
from lowbit.report.findings import findings
from lowbit.report.grid import DISTANCE, RELATIVE_LOSS, layer_grid, worst_first

Record = Mapping[str, Any]
"""A run as plain data; see `write_report`."""

_WORST = 3
"""Layers of which the report draws histograms."""

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

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
        findings=findings(record),
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
    write_text_atomically(folder / "report.html", page)
    write_card(folder, record)


def demo_report(rows: Sequence[Mapping[str, Any]], texts: Mapping[str, str], path: Path) -> None:
    """One page over several quantizations of a model.

    rows: recipe, bits, bits_per_weight, bytes, perplexity, kl (nats per token), agreement (0 to 1), seconds.
    texts: what each model wrote after the same prompt, by its label, the original first.
    """
    from lowbit.report.figures import pareto_svg  # matplotlib takes a second to import; most commands draw nothing

    figure = Markup(pareto_svg(rows))
    write_text_atomically(path, render("demo.html", rows=rows, figure=figure, texts=_compared(texts)))


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
        "tenths": numbers.tenths,
        "rough_duration": numbers.rough_duration,
        "breakable": _breakable,
        "estimate": numbers.estimate,
        "estimated_share": numbers.estimated_share,
    }
    script = files("lowbit.report").joinpath("templates/copy.js").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script=Markup(script), script_digest=digest, **values)


def _breakable(name: str) -> Markup:
    """A name or an expression that may go on in the next line after each of its parts."""
    pieces = re.split(r"(?<=[(_/-])|(?<=[=.])(?=[a-zA-Z*])", name)
    return Markup("<wbr>").join(pieces)


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
    return {"layer": layer} | {
        name: {
            "bars": _bars(layer[name], lambda count: math.log1p(count), lambda edge: numbers.digits(edge, 2)),
            "end": layer[name]["high"],
        }
        for name in ("weights", "errors")
    }


def _divergences(measures: Record | None) -> dict[str, Any] | None:
    """The distribution of single tokens' divergence as bars over whole decades, empty ones at the ends left out;
    median and rare: how far from the left end, in percent, half and a hundredth of the tokens are above."""
    if not measures or not measures["divergence"]:
        return None
    found, quantiles = measures["divergence"]["kl_histogram"], measures["divergence"]["kl_quantiles"]
    first, last = round(found["low"]), round(found["high"])
    per_decade = len(found["counts"]) // (last - first)
    counts = list(found["counts"])
    while len(counts) > per_decade and not any(counts[:per_decade]):
        counts, first = counts[per_decade:], first + 1
    while len(counts) > per_decade and not any(counts[-per_decade:]):
        counts, last = counts[:-per_decade], last - 1

    def place(value: float) -> float:
        decade = math.log10(value) if value > 0 else first
        return round(100 * min(1.0, max(0.0, (decade - first) / (last - first))), 1)

    return {
        "bars": _bars({"low": first, "high": last, "counts": counts}, float, lambda edge: numbers.digits(10**edge, 2)),
        "ticks": [_power_of_ten(decade) for decade in range(first, last + 1)],
        "median": place(quantiles["50"]),
        "rare": place(quantiles["99"]),
        "most": max(counts) / max(1, sum(counts)),
    }


def _power_of_ten(decade: int) -> str:
    return numbers.digits(10.0**decade, 1) if decade > -4 else "10⁻" + str(-decade).translate(_SUPERSCRIPTS)


def _bars(histogram: Record, height: Callable[[int], float], shown: Callable[[float], str]) -> list[dict[str, Any]]:
    """Columns of a histogram (see `core.histogram`): height in percent of the largest, and what they stand for."""
    counts, low, total = histogram["counts"], histogram["low"], sum(histogram["counts"]) or 1
    step, largest = (histogram["high"] - low) / len(counts), max(map(height, counts)) or 1
    edges = [shown(low + i * step) for i in range(len(counts) + 1)]
    return [
        {
            "height": round(100 * height(count) / largest, 2),
            "title": f"{left} to {right}: {count:,} ({numbers.share(count / total)})",
        }
        for left, right, count in zip(edges, edges[1:], counts, strict=False)
    ]


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
