"""Where the time of a run goes, stage by stage, on the model that ships with lowbit or another.

    python benchmarks/whole_run.py --recipe optq --recipe trellis
    python tools/make_synthetic.py MODEL --shape 1B --blocks 1
    python benchmarks/whole_run.py --recipe optq --model MODEL --samples 16
    python benchmarks/whole_run.py --recipe optq --peer-python .venv-gptqmodel/bin/python

Each recipe is run once to compile and once to measure, in this process, with the functions that begin the stages
timed; time is counted where it is spent and not again around it, in seconds of the processor, so that other jobs on
the machine do not count. In the solver are the target that CrossMoment solves for and all of `quantize_layer` but the
figures that it reports. With `--peer-python`, optq (4 bits, groups of 128, symmetric) and GPTQModel's run of the same
from folder to folder, on the same windows, each in a process of its own, in turn (see optq.py, which says how to make
the peer's environment). Prints JSON.
"""

import argparse
import functools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import lowbit
from lowbit.cli.demo import MODEL
from lowbit.cli.requests import parse_settings, recipe_of
from optq import in_turn, make_windows

STAGES = {
    "reading": [
        "lowbit.pipeline.source.SourceModel.open",
        "lowbit.pipeline.source.SourceModel.digest",
        "lowbit.pipeline.source.SourceModel.load",
        "lowbit.pipeline.source.SourceModel._load_children",
        "lowbit.pipeline.source.SourceModel._rows",
    ],
    "calibration text": ["lowbit.pipeline.quantize._windows"],
    "capture": [
        "lowbit.pipeline.drive._embed",
        "lowbit.pipeline.drive.find_stages",
        "lowbit.pipeline.drive.find_tails",
        "lowbit.pipeline.observe.Watched.observe",
        "lowbit.pipeline.drive.advance",
    ],
    "statistics": ["lowbit.pipeline.drive.gather", "lowbit.pipeline.drive.merge"],
    "target": ["lowbit.statistics.cross_moment.CrossMoment.problem"],
    "solve": ["lowbit.pipeline.solve.quantize_layer"],
    "figures of layers": ["lowbit.core.layer._stats", "lowbit.core.layer.loss_limit"],
    "write": ["lowbit.pipeline.drive.write_tensors_atomically", "lowbit.pipeline.journal.Journal.record"],
    "read back": ["lowbit.pipeline.drive.is_finished", "lowbit.pipeline.drive._read_layer"],
    "assemble": ["lowbit.pipeline.quantize.assemble"],
    "check": ["lowbit.pipeline.quantize._finish", "lowbit.pipeline.drive._logits"],
    "report": ["lowbit.api.write_report", "lowbit.api.byte_budget"],
}


class Stages:
    """Seconds spent in each stage, those of stages inside it left out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open = ["else"]
        self._since = time.process_time()

    @contextmanager
    def inside(self, stage: str) -> Iterator[None]:
        self.settle()
        self._open.append(stage)
        try:
            yield
        finally:
            self.settle()
            self._open.pop()

    def settle(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.inside(stage):
                return function(*args, **kwargs)

        return wrapped


def seconds_by_stage(work: Callable[[], object]) -> dict[str, float]:
    stages = Stages()
    with ExitStack() as stack:
        for stage, targets in STAGES.items():
            for target in targets:
                patcher = patch(target)
                original, _ = patcher.get_original()
                if isinstance(original, classmethod):
                    timed: Any = classmethod(stages.timed(stage, original.__func__))
                else:
                    timed = stages.timed(stage, original)
                stack.enter_context(patch(target, timed))
        work()
    stages.settle()
    return dict(stages.seconds)


def measured(model: str, name: str, settings: list[str], samples: int, length: int) -> dict:
    recipe, calibration = recipe_of(name, parse_settings(settings)), lowbit.Calibration(samples=samples, length=length)
    with tempfile.TemporaryDirectory() as folder:
        lowbit.quantize(model, Path(folder) / "first", recipe, calibration=lowbit.Calibration(samples=1, length=64))
        out = Path(folder) / "second"
        seconds = seconds_by_stage(lambda: lowbit.quantize(model, out, recipe, calibration=calibration))
    total = sum(seconds.values())
    shares = {stage: round(spent / total, 4) for stage, spent in sorted(seconds.items(), key=lambda item: -item[1])}
    return {"recipe": name, "seconds": round(total, 2), "shares": shares}


def beside_gptqmodel(peer_python: Path, model: str, samples: int, length: int, repeats: int) -> dict:
    """Medians of both sides and their ratios, lowbit over GPTQModel: below 1 is better."""
    settings = {"bits": 4, "group_size": 128, "symmetric": True, "damping": 0.01, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_windows(work, Path(model), samples, length)
        (work / "settings.json").write_text(json.dumps(settings))
        return settings | in_turn(str(peer_python.absolute()), "model", work, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--peer-python", type=Path, help="Python of the environment that has GPTQModel")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison")
    options = parser.parse_args()
    for name in options.recipe or ["optq", "trellis"]:
        found = measured(options.model, name, options.set, options.samples, options.sequence_length)
        print(json.dumps(found), flush=True)
    if options.peer_python:
        calibration = options.samples, options.sequence_length
        found = beside_gptqmodel(options.peer_python, options.model, *calibration, options.repeats)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
