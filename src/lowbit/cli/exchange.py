"""Other tools' formats: `lowbit export` writes them, `lowbit import` reads them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lowbit.cli.options import FolderArgument, JsonOption, OutOption


def export(
    folder: FolderArgument,
    format: Annotated[str, typer.Option("--format", help="One of gptq, gptq_v2, compressed-tensors, awq, exl3, gguf.")],
    out: OutOption,
    requantize: Annotated[
        int | None, typer.Option("--requantize", help="Round what the format cannot hold to so many bits.")
    ] = None,
    text: Annotated[str, typer.Option("--text", help="What the cost of that is measured on.")] = "stdlib",
    as_json: JsonOption = False,
) -> None:
    """Write a quantized folder in another tool's format: the same codes, or rounded again where that is asked for."""
    from lowbit import api

    _show(api.export(folder, out, format, requantize=requantize, text=text), out, as_json)


def import_(
    model: Annotated[
        str, typer.Argument(help="A GPTQ, AWQ, compressed-tensors or EXL3 folder, or a GGUF file.", metavar="MODEL")
    ],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Read another tool's quantized folder into one of lowbit's, with exactly the same codes."""
    from lowbit import api

    _show(api.import_(model, out), out, as_json)


def _show(done: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(done))
        return
    from rich.console import Console

    from lowbit.report import measures_table, numbers

    console, again = Console(), done.get("requantized", 0)
    console.print(
        f"{out}: {done['layers']} layers, {done['bits_per_weight']:.3f} bits per quantized weight, "
        f"{numbers.size(done['bytes'])} in all, "
        + (f"{again} layers rounded again." if again else "the same codes as before."),
        highlight=False,
        soft_wrap=True,
    )
    if again:
        console.print("What that costs, the folder exported as the reference:")
        console.print(measures_table(done["measures"]))
