"""The same block types, quantized by llama.cpp and by lowbit: what does the recipe kquant gain?

Environment: lowbit's own, with the package gguf, and libggml-base of any llama.cpp (`pip install llama-cpp-python`).

    python benchmarks/interop/quantize_llama.py libggml-base.so [MODEL] [--bits 2 3 4 5 6] [--windows 64]

ggml's quantizer runs as it comes and with an importance matrix, the mean square of every input over the calibration
windows that lowbit's recipe sees; every layer gets the same type, embeddings and norms stay. Where 256 do not divide
the inputs both sides take the same block of 32. Prints bits per weight and KL(original || quantized) in nats a token on
held-out windows, with its standard error.
"""

import argparse
import copy
import ctypes
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowbit
from lowbit.cli.demo import MODEL
from lowbit.codes import KQuant, Lookup, SuperBlocks
from lowbit.evaluation import evaluate
from lowbit.evaluation.evaluate import held_out_windows, open_model
from lowbit.pipeline.quantize import Calibration
from lowbit.pipeline.text import calibration_windows, read_texts, token_stream

LENGTH = 256
SMALL = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}


def type_of(bits: int, shape: tuple[int, int]) -> str:
    """The block type that KQuant takes for a layer."""
    code = KQuant(bits).at(shape)
    assert isinstance(code, Lookup)
    return f"Q{bits}_K" if isinstance(code.tables, SuperBlocks) else SMALL[code.tables.bits]


def by_ggml(library: ctypes.CDLL, weight: Tensor, kind: str, importance: Tensor | None) -> Tensor:
    """The weight [N, K] as ggml's quantizer leaves it; importance: [K]."""
    number, (n, k) = gguf.GGMLQuantizationType[kind], weight.shape
    width, nbytes = gguf.GGML_QUANT_SIZES[number]
    packed = np.zeros((n, k // width * nbytes), np.uint8)
    source = np.ascontiguousarray(weight.float().numpy())
    matrix = None if importance is None else np.ascontiguousarray(importance.float().numpy())
    written = library.ggml_quantize_chunk(
        int(number), source.ctypes.data, packed.ctypes.data, 0, n, k, None if matrix is None else matrix.ctypes.data
    )
    assert written == packed.nbytes
    return torch.from_numpy(gguf.dequantize(packed, number))


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in name}


@torch.no_grad()
def mean_squares(model: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """The mean square of every input of every layer, [K] by name."""
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, __, name=name: found.update(
                {name: found.get(name, 0) + inputs[0].double().square().flatten(0, -2).sum(0)}
            )
        )
        for name, layer in linears(model).items()
    ]
    for batch in windows.split(8):
        model(batch)
    for hook in hooks:
        hook.remove()
    return {name: total / windows.numel() for name, total in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", type=Path)
    parser.add_argument("model", nargs="?", default=str(MODEL))
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--windows", type=int, default=64, help="of calibration and of evaluation")
    options = parser.parse_args()
    library = ctypes.CDLL(str(options.library))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    original = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    stream = token_stream(
        AutoTokenizer.from_pretrained(options.model), read_texts("stdlib", "calibration"), original.config.vocab_size
    )
    squares = mean_squares(original, calibration_windows(stream, options.windows, LENGTH, 0))
    cut = held_out_windows(open_model(options.model), "stdlib", LENGTH)[: options.windows]
    calibration = Calibration("stdlib", options.windows, LENGTH, 0)

    def tell(bits: int, who: str, model: object, per_weight: float) -> None:
        kl = evaluate(model, text=cut, reference=original).divergence.kl
        print(
            f"{bits} bits  {who:28s} {per_weight:.4f} bits per weight   KL {kl.mean:.5f} +- {kl.error:.5f}", flush=True
        )

    for bits in options.bits:
        for who, importance in (("ggml", {}), ("ggml, importance matrix", squares)):
            model, spent, weights = copy.deepcopy(original), 0.0, 0
            for name, layer in linears(model).items():
                kind = type_of(bits, tuple(layer.weight.shape))
                layer.weight.data = by_ggml(library, layer.weight.data, kind, importance.get(name))
                width, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
                spent, weights = spent + 8 * nbytes / width * layer.weight.numel(), weights + layer.weight.numel()
            tell(bits, who, model, spent / weights)
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "out"
            record = lowbit.quantize(options.model, out, lowbit.recipes.kquant(bits), calibration=calibration)
            tell(bits, "lowbit, recipe kquant", out, record["size"]["bits_per_weight"])


if __name__ == "__main__":
    main()
