"""Looking at finished checkpoints: `lowbit report` measures one, `lowbit compare` sets several side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.options import FolderArgument, JsonOption, LengthOption, TextOption, WindowsOption

ReferenceOption = Annotated[
    str | None, typer.Option("--reference", help="The original; by default what the report names.")
]
SameTextOption = Annotated[
    str | None, typer.Option("--text", help="A source as for --calibration; by default that of a finished report.")
]


def report(
    folder: FolderArgument,
    reference: ReferenceOption = None,
    text: TextOption = "stdlib",
    sequence_length: LengthOption = None,
    windows: WindowsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a quantized folder against its original and write what is found into its report."""
    from rich.console import Console

    from lowbit.cli.measured import measured_record, record_of
    from lowbit.evaluation.evaluate import open_model
    from lowbit.evaluation.review import Ground
    from lowbit.report import measures_table

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

    What was not measured on this text yet is measured first. Folders that `lowbit quantize` wrote and nobody has
    measured keep what was found in their reports, as with `lowbit report`; nothing is written into others.
    """
    from rich.console import Console

    from lowbit.cli.measured import records_on_one_ground
    from lowbit.evaluation.review import Ground
    from lowbit.report import checkpoints_table, write_comparison
    from lowbit.report.comparison import comparison_rows

    records = records_on_one_ground(models, Ground(reference, text, sequence_length, windows))
    rows = comparison_rows(records)
    write_comparison(records, out)
    if as_json:
        print(json.dumps(rows))
        return
    console = Console()
    console.print(checkpoints_table(rows))
    console.print(f"Page: {out}", highlight=False, soft_wrap=True)
