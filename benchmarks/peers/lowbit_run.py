"""lowbit's side of benchmarks/optq.py and benchmarks/peers.py: the same verbs and files as gptqmodel_run.py."""

import time
from pathlib import Path

import numba
import protocol
import torch
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.core.layer import quantize_layer
from lowbit.core.random import stream
from lowbit.evaluation.size import checkpoint_size
from lowbit.pipeline import quantize as pipeline
from lowbit.runtime.linear import QuantizedLinear


def recipe(settings: dict) -> lowbit.Recipe:
    return lowbit.recipes.optq(
        settings["bits"], settings["group_size"], settings["symmetric"], damping=settings["damping"]
    )


def layer(work: Path, settings: dict) -> dict:
    numba.set_num_threads(settings["threads"])
    data, chosen = load_file(work / "layer.safetensors"), recipe(settings)
    warm = chosen.statistic.update(chosen.statistic.init(256), {"inputs": torch.randn(512, 256)})
    quantize_layer(chosen.statistic.problem(warm, torch.randn(64, 256))[0], chosen, stream(0))  # compiles the kernels
    started = time.perf_counter()
    state = chosen.statistic.init(data["weight"].shape[1])
    for chunk in data["inputs"].split(2048):
        state = chosen.statistic.update(state, {"inputs": chunk})
    statistic = time.perf_counter() - started
    problem, _ = chosen.statistic.problem(state, data["weight"])
    rounded = chosen.rounder.round(problem, chosen.code)
    seconds = time.perf_counter() - started
    save_file({"w_hat": rounded.w_hat}, work / "lowbit-layer.safetensors")
    return {"seconds": seconds, "statistic_seconds": statistic}


def model(work: Path, settings: dict) -> dict:
    measured = quantized(work, recipe(settings), settings["threads"])
    windows = load_file(work / "windows.safetensors")["evaluation"]
    loaded = lowbit.load(work / "lowbit-model", dtype=torch.float32)
    with torch.no_grad():
        logits = torch.cat([loaded(input_ids=row[None]).logits for row in windows])
    save_file({"logits": logits}, work / "lowbit-logits.safetensors")
    return measured


def weights(work: Path, settings: dict) -> dict:
    chosen = lowbit.recipes.from_toml(settings["recipe"])
    measured = quantized(work, chosen, settings["threads"])
    loaded = lowbit.load(work / "lowbit-model", dtype=torch.float32)
    modules = {name: m for name, m in loaded.named_modules() if isinstance(m, QuantizedLinear)}
    protocol.write_weights(work, {name: module.dequantize() for name, module in modules.items()})
    size = checkpoint_size(work / "lowbit-model")
    measured["bits_per_weight"] = measured["stored_bits"] = size.bits_per_weight
    return measured | {"file_bytes": size.bytes}


def quantized(work: Path, chosen: lowbit.Recipe, threads: int) -> dict:
    """The folder WORK/lowbit-model, and what it took."""
    numba.set_num_threads(threads)
    windows = protocol.calibration(work)
    pipeline._windows = lambda *args: windows  # the peer gets these very windows too
    calibration = lowbit.Calibration(samples=len(windows), length=windows.shape[1])
    started, processor = time.perf_counter(), time.process_time()
    lowbit.quantize(work / "model", work / "lowbit-model", chosen, calibration=calibration)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return {"seconds": seconds, "processor_seconds": processor, "peak_bytes": protocol.peak_bytes()}


if __name__ == "__main__":
    protocol.main({"layer": layer, "model": model, "weights": weights})
