"""Looking at finished checkpoints: `lowbit report` measures one, `lowbit compare` sets several side by side."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lowbit.cli.progress import progress_bars
from lowbit.core.errors import BadRequest, require
from lowbit.evaluation.evaluate import Opened, open_model
from lowbit.evaluation.review import Ground, judge, review
from lowbit.evaluation.tokens import Progress
from lowbit.exchange import gguf_file
from lowbit.formats.shards import read_json
from lowbit.pipeline.source import resolve_folder
from lowbit.report import checkpoints_table, measures_table, write_comparison, write_report
from lowbit.report.comparison import comparison_rows

FolderArgument = Annotated[Path, typer.Argument(help="A folder that `lowbit quantize` wrote.", metavar="DIR")]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", help="The original; by default what the report names.")
]
TextOption = Annotated[str, typer.Option("--text", help="A source as for --calibration.")]
SameTextOption = Annotated[
    str | None, typer.Option("--text", help="A source as for --calibration; by default that of a finished report.")
]
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
    record = record_of(folder)
    ground = Ground(reference or record["model"]["source"], text, sequence_length, windows)
    record = measured_record(folder, record, open_model(str(ground.reference)), ground)
    if as_json:
        print(json.dumps(record))
        return
    console = Console()
    console.print(measures_table(record["measures"]))
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="Folders of lowbit or other tools, names on the hub, GGUF files.", metavar="MODEL..."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("compare.html"),
    reference: ReferenceOption = None,
    text: SameTextOption = None,
    sequence_length: LengthOption = None,
    windows: WindowsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare checkpoints of one model, of any tool, on one page.

    What was not measured on this text yet is measured first. Folders that `lowbit quantize` wrote keep what was found
    in their reports, as with `lowbit report`; nothing is written into others.
    """
    places = [Path(model).expanduser() for model in models]
    require(len(places) == len(set(places)), "A folder is given twice. Name each once.")
    records = _on_one_ground(models, Ground(reference, text, sequence_length, windows))
    records = dict(zip(_short_labels(places).values(), (records[model] for model in models), strict=True))
    rows = comparison_rows(records)
    write_comparison(records, out)
    if as_json:
        print(json.dumps(rows))
        return
    console = Console()
    console.print(checkpoints_table(rows))
    console.print(f"Page: {out}", highlight=False, soft_wrap=True)


def _on_one_ground(models: Sequence[str], ground: Ground) -> dict[str, dict[str, Any]]:
    """Each model's record with measures taken on `ground`; what that leaves open is as in the first that has them."""
    own = {model: record_of(Path(model)) for model in models if _was_made_here(Path(model))}
    reference = ground.reference or next((record["model"]["source"] for record in own.values()), None)
    strangers = [model for model in models if model not in own]
    if strangers and reference is None:
        raise BadRequest(f"Nothing says what {strangers[0]} was quantized from. Give --reference MODEL.")
    for model in strangers:  # a wrong name is said before hours of work
        if gguf_file(Path(model).expanduser()) is None:
            resolve_folder(model)
    finished = [model for model, record in own.items() if ground.holds(record.get("measures"))]
    opened, records = functools.cache(open_model), {}
    for model in dict.fromkeys((*finished, *models)):
        record = own.get(model)
        source = ground.reference or (record["model"]["source"] if record else reference)
        here = replace(ground, reference=source)
        if record is None:
            record = _with_progress(judge, model, opened(source), here)
        elif not ground.holds(record.get("measures")):
            record = measured_record(Path(model), record, opened(source), here)
        records[model], ground = record, ground.narrowed(record["measures"])
    return records


def _was_made_here(place: Path) -> bool:
    """Whether it is a folder with the record of its quantization, not one that was read from another tool's."""
    path = place / "report.json"
    return path.is_file() and "imported" not in read_json(path)


def _short_labels(folders: list[Path]) -> dict[Path, str]:
    """Each folder's name, with as much of its path as tells it from the others."""
    for parts in range(1, max(len(folder.absolute().parts) for folder in folders) + 1):
        labels = {folder: "/".join(folder.absolute().parts[-parts:]) for folder in folders}
        if len(set(labels.values())) == len(folders):
            break
    return labels


def measured_record(folder: Path, record: dict[str, Any], original: Opened, ground: Ground) -> dict[str, Any]:
    """The record of a finished run with measures and continuations, which are also written into its report."""
    record = record | _with_progress(review, str(folder), original, ground)
    write_report(record, folder)
    return record


def _with_progress(
    look: Callable[[str, Opened, Ground, Progress], dict[str, Any]], model: str, original: Opened, ground: Ground
) -> dict[str, Any]:
    with progress_bars() as bars:
        return look(model, original, ground, lambda done, total: bars(f"evaluating {Path(model).name}", done, total))


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
