"""Tables for the terminal, as rich renderables; names are shown as they are, never read as markup."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from lowbit.report import numbers

_NAME_WIDTH = 12
"""What is left of names in a narrow terminal before numbers are cut."""


def measures_table(measures: Mapping[str, Any]) -> Table:
    """What an evaluation found. measures: `evaluation.Measures.to_dict()`."""
    table = _table("measure", "model", "reference", title=_where(measures))
    divergence, size = measures["divergence"], measures["size"]
    reference = numbers.estimate(divergence["perplexity"]) if divergence else ""
    _row(table, "perplexity", numbers.estimate(measures["perplexity"]), reference)
    if divergence:
        _row(table, "KL to the reference, nats per token", numbers.estimate(divergence["kl"]))
        for name, value in divergence["kl_quantiles"].items():
            _row(table, f"  {name}" if name == "max" else f"  {name} % of tokens below", numbers.digits(value))
        _row(table, "top-1 agreement", numbers.estimate(divergence["agreement"]))
    if size:
        _row(table, "size", numbers.size(size["bytes"]))
        _row(table, "bits per parameter", numbers.digits(size["bits_per_parameter"]))
        if size["bits_per_weight"] is not None:
            _row(table, "bits per weight of quantized layers", numbers.digits(size["bits_per_weight"]))
    for task, metrics in measures["tasks"].items():
        for name, value in metrics.items():
            _row(table, f"{task} {name}", numbers.estimate(value))
    return table


def layers_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """Quantized layers as a report's record lists them, in the order given; nearest, loss: the relative loss
    before and after rounding.

    Columns that would say nothing, such as one recipe for all, are left out.
    """
    columns = {
        "layer": [layer["name"] for layer in layers],
        "shape": ["{} x {}".format(*layer["shape"]) for layer in layers],
        "recipe": [layer["recipe"] for layer in layers],
        "bits": [numbers.digits(layer["bits_per_weight"]) for layer in layers],
        "nearest": [_or_empty(numbers.share, layer.get("nearest_relative_loss")) for layer in layers],
        "loss": [numbers.share(layer["relative_loss"]) for layer in layers],
        "outcomes": [", ".join(outcome["kind"] for outcome in layer["outcomes"]) for layer in layers],
        "time": [numbers.duration(layer["seconds"]) for layer in layers],
    }
    if len(set(columns["recipe"])) == 1:
        del columns["recipe"]
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    table = _table(*shown)
    for cells in zip(*shown.values(), strict=True):
        _row(table, *cells)
    return table


def limits_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """How far layers of a report's record are from the least loss that their bits allow, and what was promised."""
    table = _table("layer", "bits", "loss", "limit", "above it", "bound", "clamped")
    for layer in layers:
        above, bound, clamped = layer["bits_above_limit"], layer["bound"], layer["clamped"]
        _row(
            table,
            layer["name"],
            numbers.digits(layer["bits_per_weight"]),
            numbers.digits(layer["loss"]),
            numbers.digits(layer["limit"]),
            _or_empty("{:.2f}".format, above),
            _or_empty(numbers.digits, bound),
            _or_empty(numbers.share, clamped),
        )
    return table


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Several quantizations of a model side by side. rows: as `demo_report` takes them."""
    table = _table("recipe", "bits", "bits/weight", "size", "perplexity", "KL", "agreement", "time")
    for row in rows:
        _row(
            table,
            row["recipe"],
            str(row["bits"]),
            numbers.digits(row["bits_per_weight"]),
            numbers.size(row["bytes"]),
            numbers.digits(row["perplexity"], 4),
            numbers.digits(row["kl"]),
            numbers.share(row["agreement"]),
            numbers.duration(row["seconds"]),
        )
    return table


def checkpoints_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Finished checkpoints side by side. rows: of `report.comparison.comparison_rows`."""
    table = _table("checkpoint", "bits", "KL, nats", "agreement", "size", "perplexity", "recipe")
    for row in rows:
        _row(
            table,
            row["label"] + (" *" if row["best"] else ""),
            numbers.digits(row["bits_per_weight"]),
            numbers.estimate({"mean": row["kl"], "error": row["kl_error"]}),
            numbers.tenths(row["agreement"]),
            numbers.size(row["bytes"]),
            numbers.digits(row["perplexity"]["mean"], 4),
            row["recipe"],
        )
    table.caption, table.caption_justify = "* none is both at most as large and nearer to the original", "left"
    return table


def _or_empty(shown: Callable[[float], str], value: float | None) -> str:
    return "" if value is None else shown(value)


def _where(measures: Mapping[str, Any]) -> str:
    return f"{measures['text']}: {measures['windows']} windows of {measures['length']} tokens"


def _table(*columns: str, title: str | None = None) -> Table:
    title_text = Text(title) if title else None
    table = Table(box=box.SIMPLE_HEAD, title=title_text, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(columns[0], overflow="fold", min_width=_NAME_WIDTH)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))
