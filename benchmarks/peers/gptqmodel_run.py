"""GPTQModel's side of benchmarks/optq.py, run by that script with the peer environment's Python.

    python gptqmodel_run.py layer WORK    WORK/layer.safetensors (weight, inputs) -> WORK/peer-layer.safetensors
    python gptqmodel_run.py model WORK    WORK/model, WORK/windows.safetensors    -> WORK/peer-logits.safetensors

Prints one line RESULT {json} with seconds and peak bytes.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gptqmodel import BACKEND, GPTQConfig, GPTQModel
from gptqmodel.quantization.gptq import GPTQ
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def config(settings: dict) -> GPTQConfig:
    return GPTQConfig(
        bits=settings["bits"],
        group_size=settings["group_size"],
        sym=settings["symmetric"],
        desc_act=False,
        act_group_aware=False,
        damp_percent=settings["damping"],
        device="cpu",
        offload_to_disk=False,
    )


def peak_bytes() -> int:
    """Of this process since it began; getrusage would count its parent's memory at the fork."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def layer(work: Path, settings: dict) -> dict:
    data = load_file(work / "layer.safetensors")
    weight, inputs = data["weight"], data["inputs"]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    task = GPTQ(linear, config(settings))
    task.quantizer = task.create_quantizer("layer")
    task.quantizer.configure(perchannel=True)
    started = time.perf_counter()
    for chunk in inputs.split(2048):
        task.add_batch(chunk[None], None)
    statistic = time.perf_counter() - started
    result = task.quantize(blocksize=128)
    seconds = time.perf_counter() - started
    save_file({"w_hat": result[0].float().contiguous()}, work / "peer-layer.safetensors")
    return {"seconds": seconds, "statistic_seconds": statistic}


def model(work: Path, settings: dict) -> dict:
    data = load_file(work / "windows.safetensors")
    calibration = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in data["calibration"]
    ]
    loaded = GPTQModel.load(str(work / "model"), config(settings), dtype=torch.float32)
    started = time.perf_counter()
    loaded.quantize(calibration, batch_size=16)
    solved = time.perf_counter() - started
    loaded.save(str(work / "peer-model"))
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    del loaded
    save_file({"logits": logits(work, data["evaluation"])}, work / "peer-logits.safetensors")
    return {"seconds": seconds, "solve_seconds": solved, "peak_bytes": peak}


@torch.no_grad()
def logits(work: Path, windows: torch.Tensor) -> torch.Tensor:
    """In float32, in which its own layers do not run: their weights, decoded, in the original's layers."""
    saved = GPTQModel.load(str(work / "peer-model"), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
    modules = dict(saved.model.named_modules())
    decoded = {name: m.dequantize_weight() for name, m in modules.items() if hasattr(m, "dequantize_weight")}
    dense = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    assert decoded, "no quantized layer found"
    for name, weight in decoded.items():
        dense.get_submodule(name).weight.copy_(weight.T)
    return torch.cat([dense(input_ids=row[None]).logits for row in windows])


def main() -> None:
    what, work = sys.argv[1], Path(sys.argv[2])
    settings = json.loads((work / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    measured = {"layer": layer, "model": model}[what](work, settings)
    measured.setdefault("peak_bytes", peak_bytes())
    print("RESULT " + json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
