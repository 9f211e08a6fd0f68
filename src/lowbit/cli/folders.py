"""What lies in a quantized folder, as `lowbit inspect` shows it."""

from pathlib import Path
from typing import Any

from rich.console import Console

from lowbit.formats.legality import check_checkpoint, read_quantization_config
from lowbit.formats.shards import read_json
from lowbit.recipes import from_dict, to_toml
from lowbit.report.grid import DISTANCE, RELATIVE_LOSS, worst_first
from lowbit.report.table import layers_table, limits_table


def folder_data(folder: Path) -> dict[str, Any]:
    """JSON-ready data of a folder; raises BadRequest where it is no legal checkpoint."""
    parsed = read_quantization_config(folder)
    check_checkpoint(folder, from_dict)
    layers = {name: {"recipe": entry.recipe, "shape": entry.shape} for name, entry in parsed.layers.items()}
    path = folder / "report.json"
    return {
        "lowbit_version": parsed.lowbit_version,
        "recipes": list(parsed.recipes),
        "layers": layers,
        "report": read_json(path) if path.is_file() else None,
    }


def show_folder(folder: Path) -> None:
    """The same for people; raises BadRequest where it is no legal checkpoint."""
    found, console = folder_data(folder), Console()
    console.print(
        f"{folder}: a legal checkpoint of {len(found['layers'])} quantized layers, lowbit {found['lowbit_version']}.",
        markup=False,
        soft_wrap=True,
    )
    for data in found["recipes"]:
        console.print(to_toml(from_dict(data)), markup=False)
    layers = found["report"]["layers"] if found["report"] else []
    if layers:
        console.print("Layers by relative loss, worst first:")
        console.print(layers_table(worst_first(layers, RELATIVE_LOSS)))
        console.print("The five layers farthest from the least loss that their bits allow:")
        console.print(limits_table(worst_first(layers, DISTANCE)[:5]))
