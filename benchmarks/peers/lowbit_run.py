"""lowbit's side of benchmarks/optq.py: the same verbs, files and output as gptqmodel_run.py."""

import json
import sys
import time
from pathlib import Path

import numba
import torch
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.core.layer import quantize_layer
from lowbit.core.random import stream
from lowbit.pipeline import quantize as pipeline


def recipe(settings: dict) -> lowbit.Recipe:
    return lowbit.recipes.optq(
        settings["bits"], settings["group_size"], settings["symmetric"], damping=settings["damping"]
    )


def peak_bytes() -> int:
    """Of this process since it began; getrusage would count its parent's memory at the fork."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def layer(work: Path, settings: dict) -> dict:
    data, chosen = load_file(work / "layer.safetensors"), recipe(settings)
    warm = chosen.statistic.update(chosen.statistic.init(256), torch.randn(512, 256), None)
    quantize_layer(chosen.statistic.problem(warm, torch.randn(64, 256))[0], chosen, stream(0))  # compiles the kernels
    started = time.perf_counter()
    state = chosen.statistic.init(data["weight"].shape[1])
    for chunk in data["inputs"].split(2048):
        state = chosen.statistic.update(state, chunk, None)
    statistic = time.perf_counter() - started
    problem, _ = chosen.statistic.problem(state, data["weight"])
    rounded = chosen.rounder.round(problem, chosen.code)
    seconds = time.perf_counter() - started
    save_file({"w_hat": rounded.w_hat}, work / "lowbit-layer.safetensors")
    return {"seconds": seconds, "statistic_seconds": statistic}


def model(work: Path, settings: dict) -> dict:
    data = load_file(work / "windows.safetensors")
    pipeline._windows = lambda *args: data["calibration"]  # the peer gets these very windows too
    calibration = lowbit.Calibration(samples=len(data["calibration"]), length=data["calibration"].shape[1])
    started = time.perf_counter()
    lowbit.quantize(work / "model", work / "lowbit-model", recipe(settings), calibration=calibration)
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    loaded = lowbit.load(work / "lowbit-model", dtype=torch.float32)
    with torch.no_grad():
        logits = torch.cat([loaded(input_ids=row[None]).logits for row in data["evaluation"]])
    save_file({"logits": logits}, work / "lowbit-logits.safetensors")
    return {"seconds": seconds, "peak_bytes": peak}


def main() -> None:
    what, work = sys.argv[1], Path(sys.argv[2])
    settings = json.loads((work / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    numba.set_num_threads(settings["threads"])
    measured = {"layer": layer, "model": model}[what](work, settings)
    measured.setdefault("peak_bytes", peak_bytes())
    print("RESULT " + json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
