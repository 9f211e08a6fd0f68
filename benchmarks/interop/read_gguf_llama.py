"""Does llama.cpp compute from an exported file what lowbit computes from its own folder?

Environment: torch, safetensors and llama-cpp-python, which builds llama.cpp from source; lowbit is not needed.

    python benchmarks/interop/expected.py LOWBIT_FOLDER LOGITS.safetensors stdlib
    python benchmarks/interop/read_gguf_llama.py LOGITS.safetensors EXPORTED_FOLDER ...

Reads the same windows of tokens and prints the perplexity of both, and the KL divergence of llama.cpp's next-token
distributions from lowbit's, in nats a token. llama.cpp rounds activations to 8 bits, so they cannot be the same: fails
where the KL is above 1e-3 or perplexities differ by more than 1 %.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from llama_cpp import Llama
from safetensors.torch import load_file
from torch import Tensor

LARGEST_KL, LARGEST_RATIO = 1e-3, 1.01


def predictions(model: Llama, window: Tensor) -> Tensor:
    """Logarithms of next-token probabilities [T, vocabulary], float64."""
    model.reset()
    model.eval(window.tolist())
    return torch.from_numpy(np.array(model.scores[: len(window)])).double().log_softmax(-1)


def perplexity(found: list[Tensor], windows: Tensor) -> float:
    nats = [-one[:-1].gather(1, window[1:, None]) for one, window in zip(found, windows, strict=True)]
    return math.exp(float(torch.cat(nats).mean()))


def main(logits: str, *folders: str) -> int:
    expected, failed = load_file(logits), 0
    windows, own = expected["tokens"], list(expected["logits"].double().log_softmax(-1))
    print(f"lowbit: perplexity {perplexity(own, windows):.4f} on {windows.numel()} tokens")
    for folder in folders:
        path, context = str(Path(folder) / "model.gguf"), windows.shape[1]
        model = Llama(path, n_ctx=context, logits_all=True, verbose=False, n_threads=1)
        found = [predictions(model, window) for window in windows]
        each = [(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(own, found, strict=True)]
        divergence, ratio = float(torch.stack(each).mean()), perplexity(found, windows) / perplexity(own, windows)
        failed += not (divergence <= LARGEST_KL and 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO)
        print(f"{Path(folder).name}: perplexity {perplexity(found, windows):.4f}, KL {divergence:.2e}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
