"""Brevitas' side of benchmarks/peers.py: weights rounded in place, by its own language model example's functions.

Methods: rtn, gptq, gpfq, qronos, and magr+gptq, magr+qronos, which shrink the weights first. It writes no packed
checkpoint of such models, so its bits are those its codes, float16 scales and zero points would take.
"""

import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import protocol
import torch

if not hasattr(torch.Tensor, "rename"):  # torch 2.13 has no named tensors; Brevitas 0.13 still drops their names
    torch.Tensor.rename = lambda self, *names, **renamed: self

from brevitas.graph.quantize import layerwise_quantize
from brevitas_examples.common.generative.quantize import generate_quant_maps, generate_quantizers
from brevitas_examples.llm.llm_quant import gpxq
from transformers import AutoModelForCausalLM

ROUNDERS = {
    "rtn": lambda model, batches: None,
    "gptq": lambda model, batches: gpxq.apply_gptq(model, batches, act_order=True, create_weight_orig=True),
    "gpfq": lambda model, batches: gpxq.apply_gpfq(model, batches, act_order=True),
    "qronos": lambda model, batches: gpxq.apply_qronos(model, batches, act_order=True),
}


def weights(work: Path, settings: dict) -> dict:
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32).eval()
    model.config.use_cache = False
    batches = [{"input_ids": rows} for rows in protocol.batches(work)]
    shrink, _, method = settings["method"].rpartition("+")
    started = time.perf_counter()
    if shrink:
        gpxq.apply_magr(model, batches, create_weight_orig=False)
    model = layerwise_quantize(model, compute_layer_map=layer_map(settings), name_blacklist=["lm_head"]).eval()
    with torch.no_grad():
        model(**batches[0])  # fits the scales
    ROUNDERS[method](model, batches)
    seconds, peak = time.perf_counter() - started, protocol.peak_bytes()
    layers = protocol.quantized_layers(model)
    protocol.write_weights(work, {name: layer.quant_weight().value for name, layer in layers.items()})
    return {"seconds": seconds, "peak_bytes": peak, "bits_per_weight": protocol.grid_bits(settings)}


def layer_map(settings: dict) -> dict:
    quantizers = generate_quantizers(
        weight_bit_width=settings["bits"],
        weight_param_method=settings.get("range", "stats"),
        weight_scale_precision="float_scale",
        weight_quant_type="sym" if settings["symmetric"] else "asym",
        weight_quant_granularity="per_group",
        weight_group_size=settings["group_size"],
        weight_group_dim=1,
        quantize_weight_zero_point=not settings["symmetric"],
        input_scale_precision="float_scale",
    )
    return generate_quant_maps(**quantizers, dtype=torch.float32, device="cpu", quantize_embedding=False)


if __name__ == "__main__":
    protocol.main({"weights": weights})
