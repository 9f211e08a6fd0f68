"""Reports as pages: one HTML file each, that opens without a network and carries everything it shows.

    record (plain data) -> report.json as it is, report.html through a template

Everything from outside (names, text, commands) is escaped by the template engine; the only markup that is passed
through is the figure drawn here. Pages follow the reader's choice of light or dark.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowbit.formats.files import write_bytes_atomically, write_json_atomically
from lowbit.report import numbers
from lowbit.report.grid import DISTANCE, RELATIVE_LOSS, layer_grid, split_name, worst_first

Record = Mapping[str, Any]
"""A run as plain data; see `write_report`."""


def write_report(record: Record, folder: Path) -> None:
    """Write report.json and report.html into `folder`, each whole or not at all.

    record: lowbit_version, command, model (source, architecture, parameters, bytes), recipe_name, recipe (as data),
    calibration (source, samples, sequence_length, tokens, seed, digest), layers (name, shape [N, K], recipe, the stats
    of `core.layer.QuantizedLayer`, tokens, seconds, outcomes), left_alone (name, shape, reason), size (before, after
    in bytes, bits_per_weight, bits_per_parameter), seconds (total and its parts), versions; where known also
    citations, peak_memory_bytes, check (max_logit_difference) and measures (`evaluation.Measures.to_dict`).
    """
    page = _render(
        "report.html",
        record=record,
        recipe=json.dumps(record["recipe"], indent=2),
        budget=_budget(record),
        distances=layer_grid(record["layers"], DISTANCE),
        losses=layer_grid(record["layers"], RELATIVE_LOSS),
        layers=worst_first(record["layers"], DISTANCE),
        outcomes=_outcomes(record["layers"]),
        left_alone=_left_alone(record["left_alone"]),
    )
    write_json_atomically(folder / "report.json", record)
    write_bytes_atomically(folder / "report.html", page.encode())


def demo_report(rows: Sequence[Mapping[str, Any]], texts: Mapping[str, str], path: Path) -> None:
    """One page over several quantizations of a model.

    rows: recipe, bits, bits_per_weight, bytes, perplexity, kl (nats per token), agreement (0 to 1), seconds.
    texts: what each model wrote after the same prompt, by its label, the original first.
    """
    from lowbit.report.figures import pareto_svg  # matplotlib takes a second to import; most commands draw nothing

    figure = Markup(pareto_svg(rows))
    write_bytes_atomically(path, _render("demo.html", rows=rows, figure=figure, texts=_compared(texts)).encode())


def _render(template: str, **values: Any) -> str:
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


def _budget(record: Record) -> list[tuple[str, float]]:
    """Bytes by part, largest first: each kind of matrix, then all that stayed as it was."""
    parts: Counter[str] = Counter()
    for layer in record["layers"]:
        n, k = layer["shape"]
        parts[split_name(layer["name"])[1]] += n * k * layer["bits_per_weight"] / 8
    rest = record["size"]["after"] - sum(parts.values())
    return [*parts.most_common(), ("not quantized", max(0.0, rest))]


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
