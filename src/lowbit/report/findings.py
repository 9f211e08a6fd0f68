"""What a run's record comes to, in a few sentences: how good, where it is worst, what went otherwise, what to do.

A layer stands out where it loses three times what the median layer does; a bit more for it cuts its loss to about a
quarter, as every bit does (6 dB).
"""

import inspect
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from lowbit.recipes import CATALOGUE
from lowbit.report import numbers

_STANDS_OUT = 3.0
_MOST_OVERRIDES = 3
_FAR = 0.75
"""Bits from the limit that other codes do better than: trellises come within a third to a half (docs/LOG.md)."""

Record = Mapping[str, Any]


class Finding(NamedTuple):
    """about: a word or two; text: a sentence or two; command: what to type, "" where there is nothing to."""

    about: str
    text: str
    command: str = ""


def findings(record: Record) -> list[Finding]:
    """Of a run's record (see `page.write_report`), the most important first."""
    found, layers = [quality(record.get("measures"))], record["layers"]
    return [*found, *_losses(layers), _outcomes(layers), _advice(record)] if layers else found


def quality(measures: Record | None) -> Finding:
    """How far from the original the model is."""
    if not measures:
        return Finding("quality", "Not measured beside the original yet. In this folder, run", "lowbit report .")
    perplexity = numbers.digits(measures["perplexity"]["mean"], 4)
    divergence = measures["divergence"]
    if not divergence:
        return Finding("quality", f"Perplexity {perplexity}.")
    below, above = (numbers.digits(divergence["kl_quantiles"][percent], 2) for percent in ("50", "99"))
    return Finding(
        "quality",
        f"The likeliest next token is the original's for {numbers.share(divergence['agreement']['mean'])} of tokens. "
        f"Half of all tokens diverge by less than {below} nats, one in a hundred by more than {above}. Perplexity went "
        f"from {numbers.digits(divergence['perplexity']['mean'], 4)} to {perplexity}.",
    )


def _losses(layers: Sequence[Record]) -> list[Finding]:
    """What layers lose and how far that is from the limit: the median and the worst."""
    worst = max(layers, key=lambda layer: layer["relative_loss"])
    text = f"The median layer loses {_median(layers, 'relative_loss')} of its output"
    nearest = _median(layers, "nearest_relative_loss")
    text += f" ({nearest} if rounded to nearest)" if nearest else ""
    found = [Finding("loss", f"{text}, the worst {numbers.share(worst['relative_loss'])}: {worst['name']}.")]
    measured = [layer for layer in layers if layer["bits_above_limit"] is not None]
    if measured:
        farthest = max(measured, key=lambda layer: layer["bits_above_limit"])
        middle = median(layer["bits_above_limit"] for layer in measured)
        text = (
            f"The median layer is {middle:.2f} bits from the limit of its rate, the farthest "
            f"{farthest['bits_above_limit']:.2f}: {farthest['name']}."
        )
        found.append(Finding("limit", text))
    return found


def _median(layers: Sequence[Record], key: str) -> str:
    values = [layer[key] for layer in layers if layer.get(key) is not None]
    return numbers.share(median(values)) if values else ""


def _outcomes(layers: Sequence[Record]) -> Finding:
    touched = sum(bool(layer["outcomes"]) for layer in layers)
    if not touched:
        return Finding("outcomes", "Every layer was solved as the recipe says.")
    kinds = dict.fromkeys(outcome["kind"] for layer in layers for outcome in layer["outcomes"])
    return Finding("outcomes", f"{touched} of {len(layers)} layers did not go as asked: {', '.join(kinds)}. See below.")


def _advice(record: Record) -> Finding:
    """More bits for the layers that stand out, where there are any."""
    layers = record["layers"]
    middle = median(layer["relative_loss"] for layer in layers)
    outstanding = [layer for layer in layers if layer["relative_loss"] > _STANDS_OUT * middle]
    if not outstanding:
        text = (
            "No layer loses three times what the median layer does, so more bits for single layers would gain little. "
        )
        return Finding("what to do", text + f"More bits for all{_nearer(layers)} would gain more.")
    worst = sorted(outstanding, key=lambda layer: -layer["relative_loss"])[:_MOST_OVERRIDES]
    names = ", ".join(layer["name"] for layer in worst)
    text = f"{len(outstanding)} of {len(layers)} layers lose over three times what the median layer does"
    bits = record["recipe"].get("code", {}).get("bits")
    if not isinstance(bits, int) or not _takes_bits(record["recipe_name"]):
        return Finding("what to do", f"{text}, most of all {names}. More bits for them would gain most.")
    share = sum(_weights(layer) for layer in worst) / sum(map(_weights, layers))
    text += f". A bit more cuts a layer's loss to a quarter; for these it adds {numbers.digits(share, 2)} bits a weight"
    return Finding(
        "what to do", f"{text}:", " ".join(f"--override '{layer['name']}:bits={bits + 1}'" for layer in worst)
    )


def _nearer(layers: Sequence[Record]) -> str:
    distances = [layer["bits_above_limit"] for layer in layers if layer["bits_above_limit"] is not None]
    far = bool(distances) and median(distances) > _FAR
    return ", or a recipe that comes nearer to the limit (trellises do)," if far else ""


def _takes_bits(recipe: str) -> bool:
    return recipe in CATALOGUE and "bits" in inspect.signature(CATALOGUE[recipe]).parameters


def _weights(layer: Record) -> int:
    n, k = layer["shape"]
    return int(n * k)
