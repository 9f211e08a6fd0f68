"""Looking at the machine before a long run: `lowbit doctor`."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lowbit import api
from lowbit.cli.requests import recipe_of
from lowbit.core.errors import require
from lowbit.core.fields import bits_per_weight
from lowbit.core.recipe import Recipe
from lowbit.pipeline.forecast import BlockWork, LayerWork, Workload, peak_memory, run_seconds
from lowbit.pipeline.machine import Machine, Speeds, inspect_machine, measure_speeds
from lowbit.pipeline.quantize import Calibration, Options
from lowbit.report import numbers

_ONE_OF_EACH_KIND = ["rtn", "optq", "beam", "quip_sharp", "gptvq", "qtip", "trellis"]
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_VOCABULARY = 32_000
_HEAD_WIDTH = 128
# Longer than a night is not practical.
_LONGEST_SECONDS = 16 * 3600


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="The model to be quantized, if it is at hand.", metavar="[MODEL]")
    ] = None,
    parameters: Annotated[str, typer.Option("--parameters", help="The size of a model that is not: 8B, 400M.")] = "8B",
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="Recipes to judge; by default one of each kind.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Calibration windows.")] = Calibration().samples,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
) -> None:
    """Check this machine and say which recipes are practical on it."""
    recipes = {name: recipe_of(name, {}) for name in recipe or _ONE_OF_EACH_KIND}
    count = parameter_count(parameters)
    machine, speeds = inspect_machine(), measure_speeds()
    judged = [_judged(name, one, _workload(model, count, one, samples), machine) for name, one in recipes.items()]
    if as_json:
        print(json.dumps({"machine": asdict(machine), "speeds": asdict(speeds), "recipes": judged}))
        return
    console = Console()
    _show_machine(console, machine, speeds)
    named = model or f"a Llama of {numbers.count(count)} parameters"
    console.print(f"\nOf {named}, calibrated on {samples} windows:\n", highlight=False)
    table = Table("recipe", "bits per weight", "memory", "time", "practical here", box=None)
    for row in judged:
        cells = (numbers.size(row["memory"]), numbers.duration(row["seconds"]))
        table.add_row(row["recipe"], f"{row['bits_per_weight']:.2f}", *cells, "yes" if not row["why_not"] else "no")
    console.print(table)
    for reason in dict.fromkeys(row["why_not"] for row in judged if row["why_not"]):
        console.print(f"\n{reason}", highlight=False)


def parameter_count(text: str) -> int:
    """The number that "8B", "1.5b", "400M" or "7000000" stands for; raises BadRequest for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMBT]?)", text.strip().upper())
    count = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    require(10**6 <= count <= 10**13, f"--parameters {text}: must be a size from 1M to 10T. Write it as 8B or 400M.")
    return count


def llama_workload(parameters: int, recipe: Recipe, samples: int, length: int) -> Workload:
    """The work on a Llama of about so many parameters, shaped as its authors shape them: the width is 128 times the
    number of blocks, and an MLP is 2 2/3 times as wide."""
    blocks = max(2, round((parameters / (12 * _HEAD_WIDTH**2)) ** (1 / 3)))
    width = max(256, round(math.sqrt(parameters / (12 * blocks)) / 256) * 256)
    inner = round(8 * width / 3 / 256) * 256
    attention = [LayerWork("self_attn", (width, width), recipe)] * 4
    mlp = [LayerWork("mlp", shape, recipe) for shape in ((inner, width), (inner, width), (width, inner))]
    layers = (*attention, *mlp)
    weights = sum(layer.weights for layer in layers)
    outside = 2 * _VOCABULARY * width
    return Workload(
        blocks=(BlockWork(weights, layers),) * blocks,
        outside=outside,
        width=width,
        heads=max(1, width // _HEAD_WIDTH),
        nbytes=2 * (blocks * weights + outside),
        samples=samples,
        length=length,
        budget=Options().budget,
    )


def _workload(model: str | None, parameters: int, recipe: Recipe, samples: int) -> Workload:
    if model is None:
        return llama_workload(parameters, recipe, samples, 2048)
    return api.plan(model, recipe, calibration=Calibration(samples=samples)).workload


def _judged(name: str, recipe: Recipe, work: Workload, machine: Machine) -> dict[str, Any]:
    """The forecast of a recipe and what stands against it; an empty string where nothing does."""
    memory, seconds = peak_memory(work), run_seconds(work)
    shapes = [layer.shape for layer in work.layers]
    stored = sum(bits_per_weight(recipe.fields(shape), shape) * shape[0] * shape[1] for shape in shapes)
    bits = stored / sum(n * k for n, k in shapes)
    disk = int(2 * (stored / 8 + 2 * work.outside))
    return {
        "recipe": name,
        "bits_per_weight": bits,
        "memory": memory,
        "disk": disk,
        "seconds": seconds,
        "why_not": _why_not(memory, disk, seconds, machine),
    }


def _why_not(memory: int, disk: int, seconds: float, machine: Machine) -> str:
    if memory > machine.free_memory:
        return (
            f"Memory is short: {numbers.size(machine.free_memory)} are free. Fewer --samples need less, and so does a "
            "smaller model; rtn needs the least."
        )
    if disk > machine.free_disk:
        return f"The disk is short: {numbers.size(machine.free_disk)} are free here. Free some, or write elsewhere."
    if seconds > _LONGEST_SECONDS:
        return "Where it takes more than a night: fewer --samples, trellises with --set L=12, or more cores."
    return ""


def _show_machine(console: Console, machine: Machine, speeds: Speeds) -> None:
    table = Table("", "", box=None, show_header=False)
    table.add_row("memory", f"{numbers.size(machine.memory)}, {numbers.size(machine.free_memory)} free")
    table.add_row("disk", f"{numbers.size(machine.free_disk)} free in {Path.cwd()}")
    table.add_row("cores", f"{machine.cores}, {machine.simd}")
    table.add_row("GPU", "; ".join(f"{name}, {numbers.size(memory)}" for name, memory in machine.gpus) or "none")
    table.add_row("versions", ", ".join(f"{name} {at or 'not installed'}" for name, at in machine.versions.items()))
    table.add_row("copying", f"{numbers.size(speeds.copy)}/s")
    table.add_row("products", f"{numbers.count(speeds.products)} multiply-adds/s in float32")
    table.add_row("", f"{numbers.count(speeds.double_products)} in float64")
    table.add_row("trellises", f"{numbers.count(speeds.viterbi)} weights/s (2^16 states, 2 bits)")
    console.print(table)
