"""Looking at finished checkpoints: `lowbit report` measures one, `lowbit compare` sets several side by side."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lowbit.cli.progress import progress_bars
from lowbit.core.errors import BadRequest, require
from lowbit.evaluation.review import review
from lowbit.formats.shards import read_json
from lowbit.report import checkpoints_table, measures_table, write_comparison, write_report
from lowbit.report.comparison import comparison_rows

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


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `lowbit quantize` wrote.", metavar="DIR...")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("compare.html"),
    reference: ReferenceOption = None,
    text: TextOption = "stdlib",
    sequence_length: LengthOption = None,
    windows: WindowsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare quantized folders on one page. Those without measures are measured first, as `lowbit report` does."""
    require(len(folders) == len(set(folders)), "A folder is given twice. Name each once.")
    records = {str(folder): record_of(folder) for folder in folders}
    for folder in folders:
        if "measures" not in records[str(folder)]:
            records[str(folder)] = measured_record(folder, reference, text, sequence_length, windows)
    short = _short_labels(folders)
    records = {short[folder]: records[str(folder)] for folder in folders}
    rows = comparison_rows(records)
    write_comparison(records, out)
    if as_json:
        print(json.dumps(rows))
        return
    console = Console()
    console.print(checkpoints_table(rows))
    console.print(f"Page: {out}", highlight=False, soft_wrap=True)


def _short_labels(folders: list[Path]) -> dict[Path, str]:
    """Each folder's name, with as much of its path as tells it from the others."""
    for parts in range(1, max(len(folder.absolute().parts) for folder in folders) + 1):
        labels = {folder: "/".join(folder.absolute().parts[-parts:]) for folder in folders}
        if len(set(labels.values())) == len(folders):
            break
    return labels


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
    if "imported" in record:
        raise BadRequest(
            f"{folder} was read from {record['imported']}: how it was made is not known, so there is no report of it. "
            f"`lowbit eval {folder} --reference MODEL` measures it."
        )
    return record
