"""Records of checkpoints, with what was measured of them beside their originals."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit.cli.progress import progress_bars
from lowbit.core.errors import BadRequest, require
from lowbit.evaluation.evaluate import Opened, open_model
from lowbit.evaluation.review import Ground, judge, review
from lowbit.evaluation.tokens import Progress
from lowbit.exchange import gguf_file
from lowbit.formats.shards import read_json
from lowbit.integrations.hub import resolve_folder
from lowbit.report import write_report


def records_on_one_ground(models: Sequence[str], ground: Ground) -> dict[str, dict[str, Any]]:
    """The record of each model by a short label, with measures taken on `ground`; what that leaves open is as in the
    first that has them. Raises BadRequest where one is given twice, is no checkpoint, or has no known original."""
    places = [Path(model).expanduser() for model in models]
    require(len(places) == len(set(places)), "A folder is given twice. Name each once.")
    records = _measured_alike(models, ground)
    return dict(zip(_short_labels(places).values(), (records[model] for model in models), strict=True))


def _measured_alike(models: Sequence[str], ground: Ground) -> dict[str, dict[str, Any]]:
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
        elif "measures" not in record:
            record = measured_record(Path(model), record, opened(source), here)
        elif not ground.holds(record["measures"]):  # which stay in its report: they may be the longer ones
            record = record | _with_progress(review, model, opened(source), here)
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
