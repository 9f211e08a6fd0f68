"""Small lowbit checkpoints to export, and readers of other formats written from their definitions alone."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from evaluation.models import byte_tokenizer
from integrations.checkpoints import write_checkpoint
from lowbit.core.layer import QuantizedLayer, quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.core.recipe import Recipe

CONFIG = LlamaConfig(
    vocab_size=272,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=256,
    eos_token_id=256,
)
TOKENS = torch.arange(32).view(2, 16) * 7 % 256


def checkpoint(folder: Path, *recipes: Recipe, config: LlamaConfig = CONFIG) -> dict[str, QuantizedLayer]:
    """Write a random model whose layers take turns at the recipes; a recipe of None leaves its layers alone."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    layers = {}
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    for index, (name, module) in enumerate(linears):
        recipe = recipes[index % len(recipes)]
        if recipe is not None:
            layers[name] = solved(module.weight.detach().float() * 20, recipe)
    write_checkpoint(folder, model, layers)
    byte_tokenizer().save_pretrained(folder)
    return layers


def solved(weight: Tensor, recipe: Recipe) -> QuantizedLayer:
    generator = torch.Generator().manual_seed(weight.shape[0])
    x = torch.randn(4 * weight.shape[1], weight.shape[1], generator=generator)
    return quantize_layer(LayerProblem(weight, (x.T @ x).double() / len(x)), recipe, generator)


def integers(words: Tensor, bits: int, count: int) -> list[int]:
    """The integers of a bit stream in 32-bit words, through one large number."""
    stream = sum((int(word) & 0xFFFFFFFF) << 32 * place for place, word in enumerate(words.tolist()))
    return [stream >> bits * place & (1 << bits) - 1 for place in range(count)]


def gptq_weight(tensors: Mapping[str, Tensor], bits: int, version: int) -> Tensor:
    """w[n, k] = scales[g_idx[k], n] (q[k, n] - z[g_idx[k], n]), z stored less 1 in version 1."""
    g_idx, scales = tensors["g_idx"].tolist(), tensors["scales"].float()
    k, n = len(g_idx), scales.shape[1]
    q = torch.tensor([integers(column, bits, k) for column in tensors["qweight"].T])
    z = torch.tensor([integers(row, bits, n) for row in tensors["qzeros"]]) + (version == 1)
    return torch.stack([scales[g] * (q[:, i] - z[g]) for i, g in enumerate(g_idx)], dim=1)


def awq_weight(tensors: Mapping[str, Tensor]) -> Tensor:
    """Eight outputs a word, lowest nibble first, in the order 0 2 4 6 1 3 5 7."""

    def rows(words: Tensor) -> Tensor:
        table = torch.empty(len(words), 8 * words.shape[1])
        for r, row in enumerate(words):
            for block, word in enumerate(row):
                for nibble, output in zip(integers(word[None], 4, 8), (0, 2, 4, 6, 1, 3, 5, 7), strict=True):
                    table[r, 8 * block + output] = nibble
        return table

    q, z, scales = rows(tensors["qweight"]), rows(tensors["qzeros"]), tensors["scales"].float()
    g = len(q) // len(z)
    return torch.stack([scales[i // g] * (q[i] - z[i // g]) for i in range(len(q))], dim=1)


def compressed_tensors_weight(tensors: Mapping[str, Tensor], bits: int) -> Tensor:
    """Rows of signed codes stored plus 2^(b-1), zero points down the rows, likewise."""
    n, k = tensors["weight_shape"].tolist()
    scale, half = tensors["weight_scale"].float(), 1 << bits - 1
    q = torch.tensor([integers(row, bits, k) for row in tensors["weight_packed"]]) - half
    z = torch.zeros(scale.shape)
    if "weight_zero_point" in tensors:
        z = torch.tensor([integers(column, bits, n) for column in tensors["weight_zero_point"].T]).T - half
    group = torch.arange(k) // (k // scale.shape[1])
    return scale[:, group] * (q - z[:, group])
