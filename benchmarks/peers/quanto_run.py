"""optimum-quanto's side of benchmarks/peers.py: smallest to largest weight, 2 and 4 bits, its own groups of 128."""

import time
from pathlib import Path

import protocol
import torch
from optimum.quanto import freeze, qint2, qint4, quantize
from transformers import AutoModelForCausalLM

TYPES = {2: qint2, 4: qint4}


def weights(work: Path, settings: dict) -> dict:
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    started = time.perf_counter()
    quantize(model, weights=TYPES[settings["bits"]], exclude="lm_head")
    freeze(model)
    seconds, peak = time.perf_counter() - started, protocol.peak_bytes()
    layers = protocol.quantized_layers(model)
    protocol.write_weights(work, {name: layer.qweight.dequantize() for name, layer in layers.items()})
    bits = protocol.grid_bits(settings, group_size=128, zero_bits=16)
    return {"seconds": seconds, "peak_bytes": peak, "bits_per_weight": bits}


if __name__ == "__main__":
    protocol.main({"weights": weights})
