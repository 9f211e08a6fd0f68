"""HQQ's side of benchmarks/peers.py: zero points by half-quadratic splitting, no calibration data."""

import time
from pathlib import Path

import protocol
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from hqq.models.hf.base import AutoHQQHFModel
from transformers import AutoModelForCausalLM


def weights(work: Path, settings: dict) -> dict:
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    config = BaseQuantizeConfig(nbits=settings["bits"], group_size=settings["group_size"], axis=1)
    started = time.perf_counter()
    # float16 is what it stores scales and zero points in; it searches them in float32 whatever is asked for.
    AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float16, device="cpu")
    seconds, peak = time.perf_counter() - started, protocol.peak_bytes()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HQQLinear)}
    found = {name: layer.dequantize() for name, layer in layers.items()}
    protocol.write_weights(work, found)
    spent = sum(m.W_q.nbytes + m.meta["scale"].nbytes + m.meta["zero"].nbytes for m in layers.values())
    stored = 8 * spent / sum(weight.numel() for weight in found.values())
    bits = protocol.grid_bits(settings, zero_bits=16)
    return {"seconds": seconds, "peak_bytes": peak, "bits_per_weight": bits, "stored_bits": stored}


if __name__ == "__main__":
    protocol.main({"weights": weights})
