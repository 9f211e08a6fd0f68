"""GPTQModel's side of benchmarks/optq.py and benchmarks/peers.py, run with the peer environment's Python.

    python gptqmodel_run.py layer WORK    WORK/layer.safetensors (weight, inputs) -> WORK/peer-layer.safetensors
    python gptqmodel_run.py model WORK    WORK/model, WORK/windows.safetensors    -> WORK/peer-logits.safetensors
    python gptqmodel_run.py weights WORK  the same                                -> WORK/weights.safetensors

`layer` and `model` are asked for by optq.py, `weights` by peers.py.
"""

import os
import time
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import protocol
import torch
from gptqmodel import BACKEND, GPTQConfig, GPTQModel
from gptqmodel.quantization.gptq import GPTQ
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM


def config(settings: dict) -> GPTQConfig:
    return GPTQConfig(
        bits=settings["bits"],
        group_size=settings["group_size"],
        sym=settings["symmetric"],
        desc_act=False,
        act_group_aware=settings.get("act_group_aware", False),
        damp_percent=settings["damping"],
        device="cpu",
        offload_to_disk=False,
    )


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
    measured = quantized(work, settings)
    windows = load_file(work / "windows.safetensors")["evaluation"]
    save_file({"logits": logits(work, decoded(work), windows)}, work / "peer-logits.safetensors")
    return measured


def weights(work: Path, settings: dict) -> dict:
    measured = quantized(work, settings)
    found = decoded(work)
    protocol.write_weights(work, found)
    measured["bits_per_weight"] = protocol.grid_bits(settings)
    return measured | protocol.stored(work / "peer-model", found)


def quantized(work: Path, settings: dict) -> dict:
    """The folder WORK/peer-model, and what it took."""
    calibration = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in protocol.calibration(work)
    ]
    loaded = GPTQModel.load(str(work / "model"), config(settings), dtype=torch.float32)
    started, processor = time.perf_counter(), time.process_time()
    loaded.quantize(calibration, batch_size=16)
    solved = time.perf_counter() - started
    loaded.save(str(work / "peer-model"))
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    spent = {"seconds": seconds, "processor_seconds": processor, "solve_seconds": solved}
    return spent | {"peak_bytes": protocol.peak_bytes()}


def decoded(work: Path) -> dict[str, Tensor]:
    """Weights [N, K] of the saved layers, which do not run in float32 themselves."""
    saved = GPTQModel.load(str(work / "peer-model"), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
    modules = dict(saved.model.named_modules())
    found = {name: m.dequantize_weight().T for name, m in modules.items() if hasattr(m, "dequantize_weight")}
    assert found, "no quantized layer found"
    return found


@torch.no_grad()
def logits(work: Path, found: dict[str, Tensor], windows: Tensor) -> Tensor:
    """In float32, of the decoded weights in the original's layers."""
    dense = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    for name, weight in found.items():
        dense.get_submodule(name).weight.copy_(weight)
    return torch.cat([dense(input_ids=row[None]).logits for row in windows])


if __name__ == "__main__":
    protocol.main({"layer": layer, "model": model, "weights": weights})
