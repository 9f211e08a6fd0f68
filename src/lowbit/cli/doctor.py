"""Looking at the machine before a long run: `lowbit doctor`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowbit.cli.options import JsonOption, SamplesOption

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lowbit.cli.practical import Judgement
    from lowbit.pipeline.machine import Machine, Speeds

_ONE_OF_EACH_KIND = ["rtn", "optq", "kquant", "integers", "exl3", "gptvq", "trellis"]
_SIZES = ["1B", "8B", "70B"]


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="The model to be quantized, if it is at hand.", metavar="[MODEL]")
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameters", help="The size of a model that is not, such as 400M; by default 1B, 8B and 70B."),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="Recipes to judge; by default one of each kind.")
    ] = None,
    samples: SamplesOption = 128,
    as_json: JsonOption = False,
) -> None:
    """Check this machine and say which recipes are practical on it, and what to do where none is."""
    from rich.console import Console

    from lowbit.cli.practical import judged, llama_workload, model_workload, parameter_count
    from lowbit.cli.requests import recipe_of
    from lowbit.pipeline.machine import inspect_machine, measure_speeds

    recipes = [recipe_of(name, {}) for name in recipe or _ONE_OF_EACH_KIND]
    sizes = {size: parameter_count(size) for size in parameters or _SIZES}
    console, watched = Console(), Console(stderr=True)
    with watched.status("Measuring three seconds of copies, products and trellises"):
        machine, speeds = inspect_machine(), measure_speeds()
    if not as_json:
        _show_machine(console, machine, speeds)
    found = []
    for one in recipes:
        with watched.status(f"Trying {one.name}"):
            works = (
                {model: model_workload(model, one, samples)}
                if model
                else {size: llama_workload(count, one, samples) for size, count in sizes.items()}
            )
            found += [judged(one, name, work, machine) for name, work in works.items()]
    if as_json:
        rows = [asdict(one) for one in found]
        print(json.dumps({"machine": asdict(machine), "speeds": asdict(speeds), "recipes": rows}))
        return
    what = model or "Llamas of these sizes"
    console.print(f"\nTime and memory of a run over {what}, {samples} calibration windows:\n", highlight=False)
    console.print(_verdict(found))
    _show_remedies(console, found)


def _verdict(found: list["Judgement"]) -> "Table":
    """A row for each recipe, a column for each model; an exclamation mark after what there is too little of."""
    from rich.table import Table
    from rich.text import Text

    from lowbit.report import numbers

    def cell(one: "Judgement") -> Text:
        takes = {"time": numbers.rough_duration(one.seconds), "memory": numbers.size(one.memory)}
        if "disk" in one.lacking:
            takes["disk"] = f"{numbers.size(one.disk)} disk"
        shown = [taken + ("!" if what in one.lacking else "") for what, taken in takes.items()]
        return Text(", ".join(shown), style="dim" if one.lacking else "green")

    models = list(dict.fromkeys(one.model for one in found))
    table = Table("recipe", "bits", *(Path(model).name for model in models), box=None, padding=(0, 2, 0, 0))
    for recipe in dict.fromkeys(one.recipe for one in found):
        own = [one for one in found if one.recipe == recipe]
        table.add_row(recipe, f"{own[-1].bits_per_weight:.2f}", *map(cell, own))
    return table


def _show_remedies(console: "Console", found: list["Judgement"]) -> None:
    """What would help, each once, with whom."""
    from rich.padding import Padding
    from rich.text import Text

    recipes: dict[tuple[str, str, str], list[str]] = {}
    for one in sorted(found, key=lambda one: [other.model for other in found].index(one.model)):
        for what, remedy in one.lacking.items():
            recipes.setdefault((Path(one.model).name, what, remedy), []).append(one.recipe)
    if not recipes:
        console.print("\nAll of these are practical here.")
        return
    console.print("\n! is more than is free here, or longer than a night (16 h). What would help:")
    for (model, what, remedy), names in recipes.items():
        console.print(Padding(Text(f"{model}, {what} for {', '.join(names)}: {remedy}"), (0, 0, 0, 2)))


def _show_machine(console: "Console", machine: "Machine", speeds: "Speeds") -> None:
    from rich.table import Table

    from lowbit.report import numbers

    table = Table("", "", box=None, show_header=False)
    table.add_row("memory", f"{numbers.size(machine.memory)}, {numbers.size(machine.free_memory)} free")
    table.add_row("disk", f"{numbers.size(machine.free_disk)} free in this folder")
    table.add_row("cores", f"{machine.cores} for this process, {machine.simd}")
    gpus = "; ".join(f"{name}, {numbers.size(memory)}" for name, memory in machine.gpus)
    table.add_row("GPU", f"{gpus} (calibration with --device cuda; times below are without)" if gpus else "none")
    table.add_row("versions", ", ".join(f"{name} {at or 'not installed'}" for name, at in machine.versions.items()))
    table.add_row("copies", f"{numbers.size(speeds.copy)}/s read and written")
    table.add_row(
        "products",
        f"{numbers.count(speeds.products)} multiply-adds/s in float32, "
        f"{numbers.count(speeds.double_products)} in float64",
    )
    table.add_row("trellises", f"{numbers.count(speeds.viterbi)} weights/s (2^16 states, 2 bits)")
    console.print(table)
