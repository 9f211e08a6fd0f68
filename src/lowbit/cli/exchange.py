"""Other tools' formats: `lowbit export` writes them, `lowbit import` reads them."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lowbit import api
from lowbit.exchange import EXPORTS
from lowbit.report import numbers

OutOption = Annotated[Path, typer.Option("--out", help="The folder to write; empty or not there yet.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


def export(
    folder: Annotated[Path, typer.Argument(help="A folder that `lowbit quantize` wrote.", metavar="DIR")],
    format: Annotated[str, typer.Option("--format", help=f"One of {', '.join(EXPORTS)}.")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Write a quantized folder in another tool's format, with exactly the same codes."""
    _show(api.export(folder, out, format), out, as_json)


def import_(
    folder: Annotated[str, typer.Argument(help="A GPTQ, AWQ or compressed-tensors folder.", metavar="MODEL")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Read another tool's quantized folder into one of lowbit's, with exactly the same codes."""
    _show(api.import_(folder, out), out, as_json)


def _show(done: dict[str, object], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(done))
        return
    Console().print(
        f"{out}: {done['layers']} layers, {done['bits_per_weight']:.3f} bits per quantized weight, "
        f"{numbers.size(done['bytes'])} in all, the same codes as before.",  # type: ignore[arg-type]
        highlight=False,
        soft_wrap=True,
    )
