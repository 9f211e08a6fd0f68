"""Does GPTQModel compute from an exported folder what lowbit computes from its own?

Environment: torch, transformers, accelerate, gptqmodel 7.7 and optimum; lowbit is not needed.

    python benchmarks/interop/read_gptq.py LOGITS.safetensors EXPORTED_FOLDER ...

LOGITS.safetensors is what `expected.py` wrote. Exported folders are GPTQ, of either version, or AWQ. Runs in float32
on the CPU. Prints the largest difference of logits over the largest logit, from lowbit's own and from those of
weights rounded to float16, which GPTQModel's kernels compute with, and fails where the latter is above 1e-4.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def main(logits: str, *folders: str) -> int:
    expected, failed = load_file(logits), 0
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            found = model(expected["tokens"]).logits.float()
        largest = expected["logits"].abs().max()
        own, rounded = (float((found - expected[kind]).abs().max() / largest) for kind in ("logits", "rounded"))
        failed += not rounded <= TOLERANCE
        kind = type(model.model.layers[0].mlp.down_proj).__name__
        print(f"{Path(folder).name}: {kind}, logits differ by {own:.2e}, rounded {rounded:.2e}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
