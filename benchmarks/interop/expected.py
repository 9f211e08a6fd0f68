"""What lowbit itself computes: the logits that the consumers beside this file are held to.

Environment: lowbit's own.

    python benchmarks/interop/expected.py LOWBIT_FOLDER LOGITS.safetensors [TEXT]

Of some tokens in a row or, given a source of text (`stdlib`, a file), of eight held-out windows of 256.
Readers that multiply codes and scales in float16 before anything else round every weight once; `rounded` are the
logits of weights rounded so, which they must meet up to the order of float32 sums.
"""

import sys

import torch
from safetensors.torch import save_file

import lowbit
from lowbit.evaluation.evaluate import held_out_windows, open_model
from lowbit.runtime import QuantizedLinear

TOKENS = torch.arange(3, 67)[None]


@torch.no_grad()
def main(folder: str, out: str, text: str | None = None) -> None:
    tokens = TOKENS if text is None else held_out_windows(open_model(folder), text, 256)[:8]
    model = lowbit.load(folder, dtype=torch.float32)
    quantized = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    logits = model(tokens).logits
    model.dequantize()
    for name in quantized:
        weight = model.get_parameter(f"{name}.weight")
        weight.copy_(weight.half())
    rounded = model(tokens).logits
    save_file({"tokens": tokens, "logits": logits.contiguous(), "rounded": rounded.contiguous()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
