"""Looking at finished checkpoints: `lowbit report` measures one and completes its report."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lowbit.cli.progress import progress_bars
from lowbit.core.errors import BadRequest
from lowbit.evaluation.review import review
from lowbit.formats.shards import read_json
from lowbit.report import measures_table, write_report

FolderArgument = Annotated[Path, typer.Argument(help="A folder that `lowbit quantize` wrote.", metavar="DIR")]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", help="The original; by default what the report names.")
]
TextOption = Annotated[str, typer.Option("--text", help="A source as for --calibration.")]
LengthOption = Annotated[int | None, typer.Option("--sequence-length", help="Tokens a window; by default up to 2048.")]
WindowsOption = Annotated[int | None, typer.Option("--windows", help="Use only the first so many windows.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


def report(
    folder: FolderArgument,
    reference: ReferenceOption = None,
    text: TextOption = "stdlib",
    sequence_length: LengthOption = None,
    windows: WindowsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a quantized folder against its original and write what is found into its report."""
    record = measured_record(folder, reference, text, sequence_length, windows)
    if as_json:
        print(json.dumps(record))
        return
    console = Console()
    console.print(measures_table(record["measures"]))
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def measured_record(
    folder: Path, reference: str | None, text: str, length: int | None, windows: int | None
) -> dict[str, Any]:
    """The record of a finished run with measures and continuations, which are also written into its report."""
    record = record_of(folder)
    with progress_bars() as bars:
        record |= review(
            folder,
            reference or record["model"]["source"],
            text=text,
            length=length,
            windows=windows,
            progress=lambda done, total: bars(f"evaluating {folder.name}", done, total),
        )
    write_report(record, folder)
    return record


def record_of(folder: Path) -> dict[str, Any]:
    """The record of a finished run; raises BadRequest where there is none."""
    path = folder / "report.json"
    if not path.is_file():
        raise BadRequest(f"{folder} holds no report.json. Give a folder that `lowbit quantize` wrote and finished.")
    record: dict[str, Any] = read_json(path)
    return record
