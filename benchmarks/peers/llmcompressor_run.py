"""llm-compressor's side of benchmarks/peers.py. Methods: rtn, gptq."""

import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import protocol
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

MODIFIERS = {"rtn": QuantizationModifier, "gptq": GPTQModifier}


def weights(work: Path, settings: dict) -> dict:
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    windows = protocol.calibration(work)
    grid = QuantizationArgs(
        num_bits=settings["bits"],
        type="int",
        symmetric=settings["symmetric"],
        strategy="group",
        group_size=settings["group_size"],
    )
    scheme = {"group_0": QuantizationScheme(targets=["Linear"], weights=grid)}
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in windows]
    started = time.perf_counter()
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_list(rows),
        recipe=MODIFIERS[settings["method"]](config_groups=scheme, ignore=["lm_head"]),
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
    )
    model.save_pretrained(work / "peer-model", save_compressed=True)
    seconds, peak = time.perf_counter() - started, protocol.peak_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(work / "peer-model", dtype=torch.float32)
    with torch.no_grad():
        loaded(input_ids=windows[:1])  # unpacks the weights
    found = {name: layer.weight.clone() for name, layer in protocol.quantized_layers(loaded).items()}
    protocol.write_weights(work, found)
    measured = {"seconds": seconds, "peak_bytes": peak, "bits_per_weight": protocol.grid_bits(settings)}
    return measured | protocol.stored(work / "peer-model", found)


if __name__ == "__main__":
    protocol.main({"weights": weights})
