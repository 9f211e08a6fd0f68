"""What tensors are called in GGUF, and in which order llama.cpp wants their rows.

Rotary embeddings of the Llama family pair neighbouring rows in llama.cpp and rows half a head apart in transformers, so
rows of queries and keys change places; columns, and with them groups, stay.

Source: llama.cpp's convert_hf_to_gguf.py and the GGUF specification.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require


@dataclass(frozen=True)
class Architecture:
    """name: llama.cpp's. paired: whether it pairs neighbouring rows in rotary embeddings."""

    name: str
    paired: bool


ARCHITECTURES = {
    "llama": Architecture("llama", True),
    "mistral": Architecture("llama", True),
    "qwen2": Architecture("qwen2", False),
    "qwen3": Architecture("qwen3", False),
}
"""By transformers' model_type; the first that has one of llama.cpp's names is what a file is read as."""

_MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensor_name(name: str) -> str:
    """llama.cpp's name of transformers' tensor; BadRequest where there is none."""
    module, _, leaf = name.rpartition(".")
    inside = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if inside and inside[2] in _MODULES:
        return f"blk.{inside[1]}.{_MODULES[inside[2]]}.{leaf}"
    require(module in _OUTSIDE, f"tensor {name!r} has no name in GGUF that lowbit knows.")
    return f"{_OUTSIDE[module]}.{leaf}"


def parameter_name(name: str) -> str:
    """transformers' name of llama.cpp's tensor; BadRequest where there is none."""
    module, _, leaf = name.rpartition(".")
    inside = re.fullmatch(r"blk\.(\d+)\.(.+)", module)
    modules = {theirs: ours for ours, theirs in (_MODULES if inside else _OUTSIDE).items()}
    found = modules.get(inside[2] if inside else module)
    if found is None:
        raise BadRequest(f"tensor {name!r} is none that lowbit knows of a Llama, Mistral or Qwen.")
    return f"model.layers.{inside[1]}.{found}.{leaf}" if inside else f"{found}.{leaf}"


def head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def row_order(layer: str, rows: int, config: Mapping[str, Any], architecture: Architecture) -> Tensor:
    """Which row of transformers' layer is each of llama.cpp's, int64 [rows]."""
    order = torch.arange(rows)
    if not architecture.paired or not layer.endswith(("self_attn.q_proj", "self_attn.k_proj")):
        return order
    return order.view(-1, 2, head_size(config) // 2).transpose(1, 2).reshape(-1)
