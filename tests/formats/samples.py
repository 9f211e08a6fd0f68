"""A tiny checkpoint, the same on every machine: one quantized layer with everything a layer can store, one dense."""

from pathlib import Path

import torch
from torch import Tensor

from lowbit.core.layer import QuantizedLayer
from lowbit.core.maps import Permutation
from lowbit.core.records import FittedTransform
from lowbit.formats import quantization_config, stored_tensors, write_json_atomically, write_tensors_atomically
from lowbit.recipes import optq, to_dict

SHAPE = (6, 20)
LAYER = "model.layer"
# 3 bits of codes and zero points and 5 bits of order: rows of all three end in spare bits.
RECIPE = optq(bits=3, group_size=4, act_order=True)


def tiny_layer() -> QuantizedLayer:
    """A layer made of counting patterns: nothing is solved, so no arithmetic of a machine enters its bytes."""
    n, k = SHAPE
    codes = (torch.arange(n * k) * 5 % 8).to(torch.uint8).view(n, k)
    scale = (1 + torch.arange(n * k // 4)).float().view(n, k // 4) / 64
    zero = (torch.arange(n * k // 4) * 3 % 8).float().view(n, k // 4)
    order = (torch.arange(k) * 7 + 3) % k
    return QuantizedLayer(
        RECIPE, SHAPE, codes, {"scale": scale, "zero": zero}, FittedTransform(right=Permutation(order))
    )


def tensors() -> dict[str, Tensor]:
    """Everything that the checkpoint stores."""
    stored = {f"{LAYER}.{name}": tensor for name, tensor in stored_tensors(tiny_layer()).items()}
    stored[f"{LAYER}.bias"] = torch.arange(SHAPE[0]).to(torch.bfloat16)
    return {**stored, "model.embedding.weight": torch.arange(12.0).view(4, 3)}


def config() -> dict:
    return {"quantization_config": quantization_config({LAYER: (to_dict(RECIPE), SHAPE)}, "0.1.0")}


def write_checkpoint(folder: Path) -> str:
    """Write the checkpoint into an existing folder; returns the digest of its tensors' file."""
    write_json_atomically(folder / "config.json", config())
    return write_tensors_atomically(folder / "model.safetensors", tensors(), {"format": "pt"})
