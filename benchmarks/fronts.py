"""Which recipe is best at which rate? Draws and tabulates what `benchmarks/quality.py --json` measured.

    python benchmarks/fronts.py ROWS.json [ROWS.json ...] [--plot F] [--columns 2]

A panel for each model: every measured recipe, coloured by its family, and the front, the recipes that nothing beats in
both bits and KL. Tables say which recipe has the lowest KL within so many bits per weight, everything counted, and
which of each family has.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lowbit.recipes import CATALOGUE
from quality import CONTENDERS, front

RATES = (1.75, 2.25, 2.75, 3.25, 3.75, 4.25, 5.0, 6.5)
BANDS = (1.0, 2.5, 3.5, 4.5)
FAMILIES = {
    "scalar": ("integers", "#3b82c4", "o"),
    "rounded": ("integers", "#3b82c4", "o"),
    "calibrated": ("integers", "#3b82c4", "o"),
    "beside": ("outliers, kept columns, low rank", "#d9772b", "s"),
    "floats": ("floats and other fixed levels", "#3a9d6e", "D"),
    "nonuniform": ("learned tables and vectors", "#c2528b", "^"),
    "binary": ("binary planes", "#b58b1b", "v"),
    "granular": ("finer or mixed groups", "#5f8f98", "P"),
    "native": ("finer or mixed groups", "#5f8f98", "P"),
    "incoherent": ("rotated: lattices and trellises", "#8a6fd1", "X"),
}
OTHER = ("others", "#777777", ".")


def family(label: str) -> tuple[str, str, str]:
    """A recipe's family, colour and marker, by the file it is written in."""
    return FAMILIES.get(CATALOGUE[CONTENDERS[label][0]].__module__.rpartition(".")[2], OTHER)


def title(model: str) -> str:
    return "the model that ships" if model == "model" else model


def draw(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for name, colour, marker in dict.fromkeys(map(family, [row["recipe"] for row in rows])):
        mine = [row for row in rows if family(row["recipe"])[0] == name]
        points = [row["bits_per_weight"] for row in mine], [row["kl"] for row in mine]
        axes.scatter(*points, c=colour, marker=marker, s=26, alpha=0.75, linewidths=0, label=name)
    best = front(rows)
    axes.plot(*zip(*((row["bits_per_weight"], row["kl"]) for row in best), strict=True), c="black", lw=1, zorder=0)
    for row in best:
        point = row["bits_per_weight"], row["kl"]
        axes.annotate(row["recipe"], point, (-4, -5), textcoords="offset points", ha="right", va="top", fontsize=8)
    axes.margins(x=0.14, y=0.08)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(title(rows[0]["model"]), fontsize=11)
    axes.grid(color="black", alpha=0.13)
    axes.spines[["top", "right"]].set_visible(False)


def plot(models: dict[str, list[dict[str, Any]]], path: Path, columns: int) -> None:
    lines = math.ceil(len(models) / columns)
    with mpl.rc_context({"font.size": 10, "text.parse_math": False}):
        figure = Figure(figsize=(5.2 * columns, 4.2 * lines + 0.5), layout="constrained")
        panels = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, rows in zip(panels, models.values(), strict=False):
            draw(axes, rows)
        for axes in panels[len(models) :]:
            axes.set_visible(False)
        figure.supxlabel("bits per weight, everything stored included", fontsize=10)
        figure.supylabel("KL to the original, nats per token", fontsize=10)
        names = {text: mark for axes in panels for mark, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(names.values(), names.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
        figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})


Wanted = Callable[[dict[str, Any]], bool]


def table(models: dict[str, list[dict[str, Any]]], lines: dict[str, Wanted]) -> str:
    """Markdown: for each line the recipe of lowest KL among the rows that it wants, model by model."""
    text = ["|  | " + " | ".join(map(title, models)) + " |", "| --- " * (len(models) + 1) + "|"]
    for name, wanted in lines.items():
        best = [min(filter(wanted, rows), key=lambda row: row["kl"], default=None) for rows in models.values()]
        cells = [f"{row['recipe']} {row['kl']:.3g} ({row['bits_per_weight']:.2f})" if row else "" for row in best]
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def within(rate: float) -> Wanted:
    return lambda row: row["bits_per_weight"] <= rate


def of_family(name: str, low: float, high: float) -> Wanted:
    return lambda row: family(row["recipe"])[0] == name and low < row["bits_per_weight"] <= high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path, help="a .png or .svg")
    parser.add_argument("--columns", type=int, default=2, help="panels side by side")
    options = parser.parse_args()
    models: dict[str, list[dict[str, Any]]] = {}
    for path in options.rows:
        for row in json.loads(path.read_text()):
            if row.get("kl", 0) > 0:
                models.setdefault(row["model"], []).append(row)
    print("\n" + table(models, {f"within {rate:g} bits": within(rate) for rate in RATES}))
    for low, high in itertools.pairwise(BANDS):
        names = dict.fromkeys(name for name, _, _ in FAMILIES.values())
        print(f"\n{low} to {high} bits\n\n" + table(models, {name: of_family(name, low, high) for name in names}))
    if options.plot:
        plot(models, options.plot, options.columns)


if __name__ == "__main__":
    main()
