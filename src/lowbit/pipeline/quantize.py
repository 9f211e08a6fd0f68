"""The main job: a model in, a low-bit model out, resumable at any instant.

    check the request -> plan -> digests -> quantize block by block -> assemble -> reload and compare -> move into place

Everything unfinished lies in `OUT/.lowbit`; a folder without `config.json` is not a model to anyone.
"""

import hashlib
import json
import platform
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from lowbit.core.errors import BadRequest, LowbitError, require
from lowbit.core.parts import GRADIENTS
from lowbit.core.recipe import to_dict
from lowbit.formats.files import file_digest, write_json_atomically, write_tensors_atomically
from lowbit.formats.folder import require_writable
from lowbit.formats.shards import read_json, read_tensors
from lowbit.integrations.transformers import remote_code_stub
from lowbit.pipeline.assemble import assemble, move_into_place
from lowbit.pipeline.capture import final_logits, record_calls, run_block
from lowbit.pipeline.device import device_of
from lowbit.pipeline.drive import Progress, Run, is_finished, layer_records, quantize_blocks
from lowbit.pipeline.forecast import gradient_memory, solve_memory, watch_memory
from lowbit.pipeline.journal import Journal, exclusive
from lowbit.pipeline.plan import Assignment, Plan, make_plan
from lowbit.pipeline.source import SourceModel
from lowbit.pipeline.text import calibration_windows, read_texts, require_source, shuffled, token_stream, windows_digest
from lowbit.pipeline.workers import Needs, Workers, workers_at
from lowbit.version import VERSION

WORK = ".lowbit"
REPORT_NAME = "report.json"
# Logits of the run and of the reloaded folder may differ by the order of float32 sums, no more.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Calibration:
    """What the statistics see. source: as in `read_texts`; samples: windows; length: tokens each, None for
    min(2048, the model's context); seed: which windows, and everything random in a recipe."""

    source: str = "stdlib"
    samples: int = 128
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.samples >= 1, f"--samples {self.samples}: must be at least 1. Use 128.")
        require(self.length is None or self.length >= 8, f"--sequence-length {self.length}: must be at least 8.")


@dataclass(frozen=True)
class Options:
    """resume: go on with the unfinished run in the output folder. strict: any outcome is an error.
    budget: bytes of hidden states kept in memory before they go to disk. cluster: address of the Ray cluster that
    observes and solves layers, None for this process; the result is the same. device: where windows run and statistics
    are summed, `cpu`, `cuda` or `cuda:1`; layers are solved on the processor."""

    resume: bool = False
    strict: bool = False
    budget: int = 4 << 30
    cluster: str | None = None
    device: str = "cpu"


def write_record(record: Mapping[str, Any], folder: Path) -> None:
    """Write a run's record as report.json."""
    write_json_atomically(folder / REPORT_NAME, record)


def silent(what: str, done: int, total: int) -> None:
    """The progress of a run nobody watches."""


def plan(model: str, assignment: Assignment, calibration: Calibration, options: Options = Options()) -> Plan:
    """What `run` would do; raises BadRequest for all that is wrong with it but what text and weights hold."""
    require_source(calibration.source)
    source = SourceModel.open(model)
    return make_plan(source, assignment, calibration.samples, _length(source, calibration), options.budget)


def run(
    model: str,
    out: Path,
    assignment: Assignment,
    calibration: Calibration = Calibration(),
    options: Options = Options(),
    progress: Progress = silent,
    write_report: Callable[[dict[str, Any], Path], None] = write_record,
) -> dict[str, Any]:
    """Quantize `model` into the folder `out`; returns the run's record (see report).

    write_report: writes the record, as report.json and as it likes, into the finished folder before that is in place.

    Raises BadRequest where the request is wrong, before anything is written, and LowbitError where the work fails.
    """
    started = time.perf_counter()
    source = SourceModel.open(model)
    length = _length(source, calibration)
    planned = make_plan(source, assignment, calibration.samples, length, options.budget)
    _check_folder(out, planned, options.resume)
    windows = _windows(source, planned, calibration, length)
    device = device_of(options.device)
    with workers_at(options.cluster) as workers:
        digests = {
            "lowbit": VERSION,
            "recipe": _digest(assignment.describe()),
            "calibration": _digest([windows_digest(windows), calibration.seed]),
            "device": workers.kind(device),
        }
        _require_memory(workers, planned, device)
        digests["model"] = source.digest(lambda done, total: progress("reading the model", done, total))
        work = out / WORK
        work.mkdir(parents=True, exist_ok=True)
        with exclusive(work):
            path = work / "journal.jsonl"
            placed = (out / "config.json").exists()
            require(path.exists() or not placed, f"{out}: another run has just ended here. Look at what it wrote.")
            (work / "layers").mkdir(exist_ok=True)
            journal = Journal.resume(path, digests) if path.exists() else Journal.start(path, digests)
            given = calibration.seed, options.strict, options.budget, progress, device, workers
            job = Run(source, planned, windows, work, journal, *given)
            staging = work / "checkpoint" / out.absolute().name  # the report tells how to load a folder of that name
            if not placed:
                difference = _finish(job, staging, _quantized(job))
                record = _record(job, model, assignment, calibration, digests, difference)
                record["seconds"] = {"total": round(time.perf_counter() - started, 2)}
                write_report(record, staging)
            move_into_place(staging, out, work)
    return read_json(out / REPORT_NAME)


def _require_memory(workers: Workers, planned: Plan, device: torch.device) -> None:
    """Raise BadRequest where some of the work fits no machine."""
    for block in planned.workload.blocks:
        workers.require(Needs(watch_memory(planned.workload, block), device), "running windows through a block")
    if planned.workload.reads & GRADIENTS:
        workers.require(Needs(gradient_memory(planned.workload), device), "the gradients of the whole model")
    for layer in planned.layers:
        workers.require(Needs(solve_memory(layer.work)), f"solving {layer.name}")


def _length(source: SourceModel, calibration: Calibration) -> int:
    length = calibration.length or min(2048, source.context)
    require(
        length <= source.context,
        f"--sequence-length {length}: the model's context is {source.context} tokens. Use at most that.",
    )
    return length


def _windows(source: SourceModel, planned: Plan, calibration: Calibration, length: int) -> Tensor:
    """Calibration windows [samples, length]; none where no statistic reads any."""
    if not any(layer.recipe.statistic.reads for layer in planned.layers):
        return torch.empty(0, length, dtype=torch.int64)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder)
    except (OSError, ValueError) as error:
        raise BadRequest(f"{source.folder}: its tokenizer cannot be read ({error}). Calibration needs it.") from error
    # Windows are drawn from four times the text they need: enough to be varied, without reading a whole library.
    texts = shuffled(read_texts(calibration.source), calibration.seed)
    stream = token_stream(tokenizer, texts, int(source.config.vocab_size), 4 * calibration.samples * length)
    return calibration_windows(stream, calibration.samples, length, calibration.seed)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _check_folder(out: Path, planned: Plan, resume: bool) -> None:
    """Raise BadRequest where `out` is not as asked: empty for a new run, holding a run's work for one to resume."""
    require_writable(out)
    work = out / WORK
    unfinished = (work / "journal.jsonl").exists() or (work.exists() and not (out / "config.json").exists())
    if resume and not unfinished:
        done = "holds a finished model" if (out / "config.json").exists() else "holds no unfinished run"
        raise BadRequest(f"--resume: {out} {done}. Leave --resume out to start a run in an empty folder.")
    if not resume and out.exists() and any(out.iterdir()):
        way_out = "It holds an unfinished run: go on with --resume, or give" if unfinished else "Give"
        raise BadRequest(f"{out} is not empty. {way_out} another folder.")
    there = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    _require_space(out, 2 * planned.bytes_after - there)


def _require_space(out: Path, needed: int) -> None:
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    require(
        free > needed,
        f"{out}: the run needs {needed / 1e9:.2f} GB on disk, {free / 1e9:.2f} GB are free. Free some.",
    )


def _quantized(job: Run) -> Tensor:
    """The check's logits by the quantized model, computed now or by the run that is being resumed."""
    path, entry = job.work / "logits.safetensors", job.journal.get("quantized", "")
    found = entry is not None and path.exists() and file_digest(path) == entry["sha256"]
    if not found or not all(is_finished(job, layer.name) for layer in job.plan.layers):
        logits = quantize_blocks(job)
        job.journal.record("quantized", "", {"sha256": write_tensors_atomically(path, {"logits": logits}, {})})
    return read_tensors(path)["logits"]


def _finish(job: Run, staging: Path, expected: Tensor) -> float:
    """Assemble the checkpoint, load it from disk and compare; returns the largest difference of logits."""
    assemble(job, staging, VERSION, remote_code_stub(type(job.source.model).__name__))
    logits = _logits_from_disk(staging, job.check_ids, job.progress)
    difference = float((logits - expected).abs().max())
    if not difference <= _TOLERANCE * float(expected.abs().max()):
        raise LowbitError(
            f"{staging}: the checkpoint, loaded from disk, differs from what was computed by {difference:.3g} in its "
            f"logits (largest {float(expected.abs().max()):.3g}). The disk or this version of lowbit is at fault."
        )
    return difference


@torch.no_grad()
def _logits_from_disk(folder: Path, ids: Tensor, progress: Progress) -> Tensor:
    """What a checkpoint says to windows `ids`, run with a block in memory at a time as it is stored."""
    source = SourceModel.open_quantized(folder)
    with source.outside_blocks() as model:
        hidden, calls = record_calls(model, source.blocks, ids)
    for done, (block, call) in enumerate(zip(source.blocks, calls, strict=True), 1):
        source.load(block.module, block.name)
        hidden = run_block(block.module, hidden, call)
        source.release(block.module)
        progress("checking the checkpoint", done, len(calls))
    with source.outside_blocks() as model:
        return final_logits(model, source.blocks, ids, hidden)


def _record(
    job: Run, model: str, assignment: Assignment, calibration: Calibration, digests: dict[str, str], difference: float
) -> dict[str, Any]:
    plan = job.plan
    return {
        "lowbit_version": VERSION,
        "model": {
            "source": model,
            "architecture": type(job.source.model).__name__,
            "parameters": plan.parameters,
            "bytes": plan.bytes_before,
        },
        "recipe": to_dict(assignment.recipe),
        "recipe_name": assignment.recipe.name,
        "assignment": assignment.describe(),
        "calibration": {
            "source": calibration.source,
            "samples": len(job.windows),
            "sequence_length": job.windows.shape[1],
            "tokens": job.windows.numel(),
            "seed": calibration.seed,
            "digest": digests["calibration"],
        },
        "digests": digests,
        "layers": layer_records(job.journal, plan),
        "left_alone": [{"name": t.name, "shape": list(t.shape), "reason": t.reason} for t in plan.left_alone],
        "size": {
            "before": plan.bytes_before,
            "after": plan.bytes_after,
            "bits_per_weight": plan.bits_per_weight,
            "bits_per_parameter": plan.bits_per_parameter,
        },
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "check": {"max_logit_difference": difference},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
