"""Peak memory and time of quantizing a large shape, beside what `lowbit plan` forecast.

    python benchmarks/memory.py --shape 7B --blocks 1 --recipe optq --samples 8 --sequence-length 512

Writes a random model of the shape (tools/make_synthetic.py; `--blocks` bounds disk and time, a block more needs no
more memory), forecasts, quantizes it in a process of its own, prints JSON and removes everything. The yardstick of
memory is 1.5 times the largest block in float32, its Hessians in float64 and the hidden states together.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

import lowbit
from lowbit import api
from lowbit.cli.requests import parse_settings, recipe_of

TOOL = Path(__file__).resolve().parents[1] / "tools" / "make_synthetic.py"


class StagePeaks:
    """The most memory resident in each stage of a run, by the names that the run's progress gives them."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.starts: dict[str, float] = {}
        self._stage = "opening"
        _reset_peak()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.note()
        self.starts.setdefault(what, time.perf_counter())
        self._stage = what

    def note(self) -> None:
        self.peaks[self._stage] = max(_peak(), self.peaks.get(self._stage, 0))
        _reset_peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def quantized(model: Path, out: Path, recipe: str, settings: list[str], samples: int, length: int) -> dict:
    """Forecast and run, in this process."""
    chosen, calibration = (
        recipe_of(recipe, parse_settings(settings)),
        lowbit.Calibration(samples=samples, length=length),
    )
    plan = api.plan(model, chosen, calibration=calibration)
    program, forecast = psutil.Process().memory_info().rss, {"memory": plan.memory, "seconds": plan.seconds}
    started, peaks = time.perf_counter(), StagePeaks()
    record = lowbit.quantize(model, out, chosen, calibration=calibration, progress=peaks)
    seconds = time.perf_counter() - started
    peaks.note()
    work = plan.workload
    block = max(work.blocks, key=lambda block: block.weights)
    reading = [layer for layer in block.layers if layer.recipe.statistic.reads]
    hessians = 8 * sum(k * k for _, k in {(layer.parent, layer.shape[1]) for layer in reading})
    streams = 2 if "float_inputs" in work.reads else 1
    allowance = 4 * block.weights + hessians + streams * min(work.budget, 4 * work.tokens * work.width)
    peak = max(peaks.peaks.values())
    return {
        "peak": peak,
        "program": program,
        "allowance": allowance,
        "peak over allowance": peak / allowance,
        "without the program": (peak - program) / allowance,
        "memory forecast over truth": forecast["memory"] / peak,
        "seconds": seconds,
        "time forecast over truth": forecast["seconds"] / seconds,
        "seconds a block": (peaks.starts["writing the checkpoint"] - peaks.starts["quantizing layers"])
        / len(work.blocks),
        "seconds solving": sum(layer["seconds"] for layer in record["layers"]),
        "peaks": peaks.peaks,
        "starts": {name: start - started for name, start in peaks.starts.items()},
        "forecast": forecast,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1B")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--recipe", default="optq")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, out = Path(folder) / "model", Path(folder) / "out"
        command = [sys.executable, TOOL, model, "--shape", options.shape, "--blocks", str(options.blocks)]
        subprocess.run(command, check=True)
        settings = (model, out, options.recipe, options.set, options.samples, options.sequence_length)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(json.dumps(vars(options) | pool.apply(quantized, settings), indent=1))


if __name__ == "__main__":
    main()
