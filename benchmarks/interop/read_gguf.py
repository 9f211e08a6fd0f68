"""Does llama.cpp compute from an exported file what lowbit computes from its own folder?

Environment: torch, safetensors and llama-cpp-python, which builds llama.cpp from source; lowbit is not needed.

    python benchmarks/interop/read_gguf.py LOGITS.safetensors EXPORTED_FOLDER ...

LOGITS.safetensors is what `expected.py` wrote. llama.cpp rounds activations to 8 bits, so logits cannot be the same:
prints the KL divergence from lowbit's next-token distributions, in nats a token, and fails above 1e-3.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from llama_cpp import Llama
from safetensors.torch import load_file

LARGEST_KL = 1e-3


def main(logits: str, *folders: str) -> int:
    expected, failed = load_file(logits), 0
    tokens = expected["tokens"][0].tolist()
    own = expected["logits"][0].log_softmax(-1)
    for folder in folders:
        model = Llama(str(Path(folder) / "model.gguf"), n_ctx=len(tokens), logits_all=True, verbose=False, n_threads=1)
        model.eval(tokens)
        found = torch.from_numpy(np.array(model.scores[: len(tokens)])).log_softmax(-1)
        divergence = float((own.exp() * (own - found)).sum(-1).mean())
        failed += not divergence <= LARGEST_KL
        print(f"{Path(folder).name}: KL {divergence:.2e} nats a token", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
