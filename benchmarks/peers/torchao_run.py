"""torchao's side of benchmarks/peers.py: rtn on integer grids. It keeps a code of any width in a byte."""

import time
from pathlib import Path

import protocol
import torch
from torchao.quantization import IntxWeightOnlyConfig, MappingType, quantize_
from torchao.quantization.granularity import PerGroup
from transformers import AutoModelForCausalLM

TYPES = {2: torch.int2, 3: torch.int3, 4: torch.int4}


def weights(work: Path, settings: dict) -> dict:
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    mapping = MappingType.SYMMETRIC if settings["symmetric"] else MappingType.ASYMMETRIC
    config = IntxWeightOnlyConfig(
        weight_dtype=TYPES[settings["bits"]], granularity=PerGroup(settings["group_size"]), mapping_type=mapping
    )
    layers = protocol.quantized_layers(model)
    chosen = {id(layer) for layer in layers.values()}
    started = time.perf_counter()
    quantize_(model, config, filter_fn=lambda module, name: id(module) in chosen)
    seconds, peak = time.perf_counter() - started, protocol.peak_bytes()
    protocol.write_weights(work, {name: layer.weight.dequantize() for name, layer in layers.items()})
    return {"seconds": seconds, "peak_bytes": peak, "bits_per_weight": protocol.grid_bits(settings)}


if __name__ == "__main__":
    protocol.main({"weights": weights})
