"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[str, typer.Argument(help="A model folder or a name on the hub.", metavar="MODEL")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A recipe's name (see `lowbit recipes`) or a .toml file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A setting of the recipe, such as bits=3, or one of its parts, such as rounder=Beam(16)."
    ),
]
OverrideOption = Annotated[
    list[str] | None, typer.Option("--override", help="PATTERN:bits=4 for the layers that match, or PATTERN:file.toml.")
]
TargetsOption = Annotated[list[str] | None, typer.Option("--targets", help="Quantize only layers that match.")]
IgnoreOption = Annotated[list[str] | None, typer.Option("--ignore", help="Leave layers that match as they are.")]
CalibrationOption = Annotated[
    str, typer.Option("--calibration", help="`stdlib`, a .txt/.jsonl/.parquet file, or a data set on the hub.")
]
SamplesOption = Annotated[int, typer.Option("--samples", help="Calibration windows.")]
LengthOption = Annotated[int | None, typer.Option("--sequence-length", help="Tokens a window; by default up to 2048.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Chooses windows and everything random in a recipe.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
OutOption = Annotated[Path, typer.Option("--out", help="The folder to write; empty or not there yet.")]
FolderArgument = Annotated[Path, typer.Argument(help="A folder that `lowbit quantize` wrote.", metavar="DIR")]
TextOption = Annotated[str, typer.Option("--text", help="A source as for --calibration.")]
WindowsOption = Annotated[int | None, typer.Option("--windows", help="Use only the first so many windows.")]
