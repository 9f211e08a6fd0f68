"""AutoRound's side of benchmarks/peers.py: rounding learnt by signed gradients, `iterations` steps for each block."""

import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import protocol
import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer


def weights(work: Path, settings: dict) -> dict:
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    windows = protocol.calibration(work)
    started = time.perf_counter()
    tuner = AutoRound(
        model,
        AutoTokenizer.from_pretrained(work / "model"),
        bits=settings["bits"],
        group_size=settings["group_size"],
        sym=settings["symmetric"],
        iters=settings["iterations"],
        nsamples=len(windows),
        seqlen=windows.shape[1],
        batch_size=8,
        dataset=list(windows.split(1)),
        device_map="cpu",
        enable_torch_compile=False,
    )
    rounded, _ = tuner.quantize()
    found = {name: layer.weight.clone() for name, layer in protocol.quantized_layers(rounded).items()}
    # Its own format fails at 4 bits with zero points (0.16.0): it hands AWQ's writer an argument too many.
    tuner.save_quantized(str(work / "peer-model"), format="auto_round:auto_gptq")
    seconds, peak = time.perf_counter() - started, protocol.peak_bytes()
    protocol.write_weights(work, found)
    measured = {"seconds": seconds, "peak_bytes": peak, "bits_per_weight": protocol.grid_bits(settings)}
    return measured | protocol.stored(work / "peer-model", found)


if __name__ == "__main__":
    protocol.main({"weights": weights})
