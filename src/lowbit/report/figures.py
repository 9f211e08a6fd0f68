"""Figures: accuracy against size, for the page and for files.

In the page a figure takes the page's own text colour and font, so that one drawing serves light and dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

_INK = "#012345"
"""Stands for the page's text colour while a figure is drawn; any colour nothing else uses."""

_COLOURS = ("#3b82c4", "#d9772b", "#3a9d6e", "#c2528b", "#8a6fd1", "#b58b1b", "#5f8f98", "#c0493d")
_MARKERS = "osD^vPX*"
_SIZE = (6, 4)
_MOST_NAMED = 8
_LONGEST_NAME = 28
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 12,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lowbit",  # the same figure gives the same bytes
    "text.parse_math": False,  # a `$` in a recipe's name is a `$`
}


def pareto_figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw KL to the original against bits per weight into a .png or .svg file, on white.

    rows: `recipe`, `bits_per_weight` and `kl` of each model; rows without loss (the original) are left out.
    """
    with mpl.rc_context(_STYLE):
        figure = _pareto(rows, "black")
        figure.savefig(path, dpi=200, facecolor="white", metadata=_no_metadata(Path(path).suffix))


def pareto_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same figure as an <svg> element for a page, in the page's text colour."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        _pareto(rows, _INK).savefig(buffer, format="svg", transparent=True, metadata=_no_metadata(".svg"))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    opened = r'<svg viewBox="\1" role="img" aria-label="KL to the original against bits per weight">'
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', opened, svg, count=1)


def _no_metadata(suffix: str) -> dict[str, None]:
    return dict.fromkeys(("Date", "Creator", "Format", "Type") if suffix == ".svg" else ("Software",))


def _pareto(rows: Sequence[Mapping[str, Any]], ink: str) -> Figure:
    lossy = [row for row in rows if row["kl"] > 0]
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for number, recipe in enumerate(dict.fromkeys(row["recipe"] for row in lossy)):
        points = sorted((row["bits_per_weight"], row["kl"]) for row in lossy if row["recipe"] == recipe)
        axes.plot(
            *zip(*points, strict=True),
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=7,
            linewidth=1.6,
            label=f" {_short(recipe)}",  # matplotlib leaves out labels that begin with an underscore
        )
    if lossy:
        axes.set_yscale("log")
        axes.margins(0.08, 0.12)
        _draw_front(axes, lossy, ink)
        _name_points(axes, lossy, ink)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(frameon=False, labelcolor=ink)
    axes.set_xlabel("bits per weight, everything stored included", color=ink)
    axes.set_ylabel("KL to the original, nats per token", color=ink)
    axes.grid(color=ink, alpha=0.13, which="major")
    axes.tick_params(which="both", colors=ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
    return figure


def _draw_front(axes: Axes, rows: Sequence[Mapping[str, Any]], ink: str) -> None:
    """A line under which nobody is: the lowest KL of all that are at most as large."""
    points = sorted((row["bits_per_weight"], row["kl"]) for row in rows)
    lowest = list(accumulate((kl for _, kl in points), min))
    bits = [at for at, _ in points]
    axes.step(bits, lowest, where="post", color=ink, alpha=0.4, linestyle="--", linewidth=1, label=" best at its size")


def _name_points(axes: Axes, rows: Sequence[Mapping[str, Any]], ink: str) -> None:
    """The label of each point, where there are labels and few enough to be read."""
    if len(rows) > _MOST_NAMED or any("label" not in row for row in rows):
        return
    middle = (min(row["bits_per_weight"] for row in rows) + max(row["bits_per_weight"] for row in rows)) / 2
    for row in rows:
        side = ("left", 8) if row["bits_per_weight"] <= middle else ("right", -8)
        axes.annotate(
            _short(row["label"]),
            (row["bits_per_weight"], row["kl"]),
            (side[1], 6),
            textcoords="offset points",
            horizontalalignment=side[0],
            color=ink,
            fontsize=10,
        )


def _short(name: str) -> str:
    """A name cut so that it leaves room for the figure."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
