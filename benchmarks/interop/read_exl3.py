"""Does GPTQModel compute from an exported EXL3 folder what lowbit computes from its own?

Environment: torch, transformers, accelerate and gptqmodel 7.7; lowbit is not needed.

    python benchmarks/interop/read_exl3.py LOGITS.safetensors EXPORTED_FOLDER

LOGITS.safetensors is what `expected.py` wrote. Runs in float32 on the CPU, by GPTQModel's own reader of EXL3 in torch.
Prints the largest difference of logits over the largest logit and fails where it is above 1e-4.
"""

import sys

import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file

TOLERANCE = 1e-4


def main(logits: str, folder: str) -> int:
    expected = load_file(logits)
    model = GPTQModel.load(folder, device="cpu", backend=BACKEND.EXL3_TORCH, dtype=torch.float32).model
    with torch.no_grad():
        found = model(expected["tokens"]).logits.float()
    difference = float((found - expected["logits"]).abs().max() / expected["logits"].abs().max())
    kinds = {type(module).__name__ for module in model.modules() if hasattr(module, "trellis")}
    print(f"{folder}: {', '.join(kinds)}, logits differ by {difference:.2e}", flush=True)
    return int(not difference <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
