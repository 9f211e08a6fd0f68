"""Peak memory and time of quantizing a large shape, beside what `lowbit plan` forecast.

    python benchmarks/memory.py --shape 7B --blocks 1 --recipe optq --samples 8 --sequence-length 512

Writes a random model of the shape (tools/make_synthetic.py; `--blocks` bounds disk and time, a block more needs no
more memory), forecasts, quantizes it in a process of its own, prints JSON and removes everything. The yardstick of
memory is 1.5 times the largest block in float32, its Hessians in float64 and what of the activation budget is used,
beside the program: interpreter, libraries and compiled kernels, as resident after quantizing a tiny model. With
`--processor-time` all seconds, those that the forecast is made of among them, are the processor's, so that other jobs
on the machine do not count; run it on one thread.
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
from lowbit.pipeline.forecast import activation_memory, input_widths

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


def quantized(
    model: Path, tiny: Path, out: Path, recipe: str, settings: list[str], samples: int, length: int, clock: str
) -> dict:
    """Forecast and run, in this process; `clock` is the function of `time` that counts the seconds."""
    time.perf_counter = getattr(time, clock)
    chosen, calibration = (
        recipe_of(recipe, parse_settings(settings)),
        lowbit.Calibration(samples=samples, length=length),
    )
    plan = api.plan(model, chosen, calibration=calibration)
    forecast = {"memory": plan.memory, "seconds": plan.seconds}
    lowbit.quantize(tiny, out.with_name("tiny-out"), chosen, calibration=lowbit.Calibration(samples=2, length=64))
    program = psutil.Process().memory_info().rss
    started, peaks = time.perf_counter(), StagePeaks()
    record = lowbit.quantize(model, out, chosen, calibration=calibration, progress=peaks)
    seconds = time.perf_counter() - started
    peaks.note()
    work = plan.workload
    block = max(work.blocks, key=lambda block: block.weights)
    parts = {
        "block": 4 * block.weights,
        "hessians": 8 * sum(k * k for k in input_widths(block)),
        "activations": activation_memory(work),
    }
    allowance = sum(parts.values())
    peak = max(peaks.peaks.values())
    return {
        "peak": peak,
        "program": program,
        "allowance": allowance,
        "of which": parts,
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
    parser.add_argument("--processor-time", dest="clock", action="store_const", const="process_time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, out = Path(folder) / "model", Path(folder) / "out"
        command = [sys.executable, TOOL, model, "--shape", options.shape, "--blocks", str(options.blocks)]
        subprocess.run(command, check=True)
        tiny = Path(folder) / "tiny"
        subprocess.run([sys.executable, TOOL, tiny, "--shape", "tiny"], check=True)
        settings = (model, tiny, out, options.recipe, options.set, options.samples, options.sequence_length)
        settings += (options.clock or "perf_counter",)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(json.dumps(vars(options) | pool.apply(quantized, settings), indent=1))


if __name__ == "__main__":
    main()
