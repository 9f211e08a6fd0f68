"""A run in a screenful: what `lowbit plan` foresees and what `lowbit quantize` has done."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowbit.pipeline.plan import Plan
from lowbit.report import numbers
from lowbit.report.grid import RELATIVE_LOSS, worst_first
from lowbit.report.table import layers_table

_WORST = 5


def show_run(record: dict[str, Any], out: Path) -> None:
    """What became of a model, where it went worst, what did not go as asked, and what to do next."""
    console, size, layers = Console(), record["size"], record["layers"]
    console.print(f"\nThe largest relative losses of {len(layers)} layers:", highlight=False)
    console.print(layers_table(worst_first(layers, RELATIVE_LOSS)[:_WORST]))
    outcomes = [outcome for layer in layers for outcome in layer["outcomes"]]
    for (kind, remedy), count in Counter((one["kind"], one["remedy"]) for one in outcomes).most_common():
        console.print(Text(f"{kind}, {count} {'time' if count == 1 else 'times'}. {remedy}\n", style="yellow"))
    folder = shlex.quote(str(out))
    facts = {
        "size": f"{numbers.size(size['after'])}, {numbers.digits(size['before'] / size['after'], 2)} times smaller "
        f"than {numbers.size(size['before'])}",
        "bits": f"{size['bits_per_weight']:.3f} a quantized weight, everything included; "
        f"{size['bits_per_parameter']:.3f} a parameter of the whole model",
        "took": f"{numbers.duration(record['seconds']['total'])} and {numbers.size(record['peak_memory_bytes'])} of "
        "memory at the peak",
        "report": str(out / "report.html"),
        "measure it": f"lowbit report {folder}",
        "try it": f"lowbit generate {folder} 'Once upon a time'",
    }
    width = max(map(len, facts))
    for what, fact in facts.items():
        console.print(Text(what.ljust(width), style="dim"), Text(fact), soft_wrap=True)


def show_plan(planned: Plan) -> None:
    """Every layer, what is left alone, and what the run will take."""
    console = Console()
    table = Table("layer", "shape", "recipe", "bits per weight", "size", box=None)
    for layer in planned.layers:
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        table.add_row(layer.name, shape, layer.recipe.name, f"{layer.bits_per_weight:.3f}", numbers.size(layer.nbytes))
    console.print(table)
    alone = Table("left alone", "shape", "size", "why", box=None)
    for tensor in planned.left_alone:
        alone.add_row(tensor.name, " x ".join(map(str, tensor.shape)), numbers.size(tensor.nbytes), tensor.reason)
    console.print(alone)
    console.print(
        f"\nFound {len(planned.layers)} layers to quantize, {len(planned.left_alone)} tensors left alone.\n"
        f"Size {numbers.size(planned.bytes_before)} -> {numbers.size(planned.bytes_after)}: "
        f"{planned.bits_per_weight:.3f} bits per quantized weight, {planned.bits_per_parameter:.3f} per parameter.\n"
        f"About {numbers.duration(planned.seconds)}, {numbers.size(planned.memory)} of memory at the peak.",
        highlight=False,
    )


def plan_data(planned: Plan) -> dict[str, Any]:
    """JSON-ready data of a plan."""
    return {
        "layers": [
            {
                "name": layer.name,
                "shape": layer.shape,
                "recipe": layer.recipe.name,
                "bits_per_weight": layer.bits_per_weight,
                "bytes": layer.nbytes,
            }
            for layer in planned.layers
        ],
        "left_alone": [
            {"name": t.name, "shape": t.shape, "bytes": t.nbytes, "reason": t.reason} for t in planned.left_alone
        ],
        "bytes_before": planned.bytes_before,
        "bytes_after": planned.bytes_after,
        "bits_per_weight": planned.bits_per_weight,
        "bits_per_parameter": planned.bits_per_parameter,
        "memory": planned.memory,
        "seconds": planned.seconds,
    }
