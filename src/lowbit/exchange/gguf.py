"""GGUF, the one-file format of llama.cpp: every layer in the smallest block type that holds its codes exactly.

Rotary embeddings of the Llama family pair neighbouring rows in llama.cpp and rows half a head apart in transformers,
so rows of queries and keys change places; columns, and with them groups, stay. Tensors that are not quantized keep
their type, vectors become float32. Needs the package gguf (`pip install 'lowbit[gguf]'`).

Source: llama.cpp's convert_hf_to_gguf.py and the GGUF specification, for names and keys.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require
from lowbit.exchange import gguf_blocks
from lowbit.exchange.exporting import integers_in, open_checkpoint
from lowbit.exchange.tokens import write_tokenizer
from lowbit.formats.checkpoint import stored_fields
from lowbit.formats.folder import staged

FILE_NAME = "model.gguf"
HOLDS = "integers in groups of a multiple of 32 columns in order, with float16 scales, up to 8 bits"


@dataclass(frozen=True)
class _Architecture:
    """name: llama.cpp's. paired: whether it pairs neighbouring rows in rotary embeddings."""

    name: str
    paired: bool


_ARCHITECTURES = {
    "llama": _Architecture("llama", True),
    "mistral": _Architecture("llama", True),
    "qwen2": _Architecture("qwen2", False),
    "qwen3": _Architecture("qwen3", False),
}
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


def export_gguf(folder: Path, out: Path) -> dict[str, Any]:
    """Write the lowbit checkpoint `folder` to `out`/model.gguf, with the same codes.

    Returns and raises as `export_folder` does; also BadRequest where the package gguf is missing, or the architecture
    or the tokenizer is not one whose metadata lowbit knows how to write.
    """
    try:
        import gguf
    except ImportError as error:
        raise BadRequest("GGUF needs the package gguf: pip install 'lowbit[gguf]'.") from error
    config, layers, shards = open_checkpoint(folder)
    kind = str(config.get("model_type"))
    require(kind in _ARCHITECTURES, f"GGUF of a {kind} is not known to lowbit. It writes {', '.join(_ARCHITECTURES)}.")
    architecture = _ARCHITECTURES[kind]
    stored_bytes = weights = 0
    with staged(out) as staging:
        writer = gguf.GGUFWriter(staging / FILE_NAME, architecture.name, use_temp_file=True)
        _write_settings(writer, config)
        write_tokenizer(writer, folder, config)
        taken = set()
        for name, (recipe, shape) in layers.items():
            taken |= {f"{name}.{field}" for field in stored_fields(recipe, shape)}
            layer = integers_in(shards, name, (recipe, shape), "gguf", HOLDS, gguf_blocks.objection)
            rows = _row_order(name, shape[0], config, architecture)
            layer = replace(layer, codes=layer.codes[rows], scale=layer.scale[rows], zero=layer.zero[rows])
            block = gguf_blocks.block_type(layer)
            packed = block.blocks(layer).numpy()
            writer.add_tensor(_tensor_name(f"{name}.weight"), packed, raw_dtype=gguf.GGMLQuantizationType[block.name])
            stored_bytes += packed.nbytes
            weights += layer.codes.numel()
        for name in (name for name in shards.entries if name not in taken):
            tensor = shards.load(name)
            tensor = tensor[_row_order(name.rpartition(".")[0], len(tensor), config, architecture)]
            data, dtype = _plain(tensor)
            writer.add_tensor(_tensor_name(name), data, raw_dtype=gguf.GGMLQuantizationType[dtype])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with (staging / FILE_NAME).open("rb") as file:
            os.fsync(file.fileno())
    size = (out / FILE_NAME).stat().st_size
    return {"format": "gguf", "layers": len(layers), "bytes": size, "bits_per_weight": 8 * stored_bytes / weights}


def _write_settings(writer: Any, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"}
    require(
        rope.get("rope_type", "default") == "default",
        f"rotary embeddings of type {rope.get('rope_type')!r} are not known to lowbit's GGUF writer, only plain ones.",
    )
    heads, head = config["num_attention_heads"], _head_size(config)
    writer.add_name(str(config.get("name_or_path") or config["model_type"]))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_vocab_size(config["vocab_size"])


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _row_order(layer: str, rows: int, config: Mapping[str, Any], architecture: _Architecture) -> Tensor:
    """Which row of transformers' goes where in llama.cpp's tensor."""
    order = torch.arange(rows)
    if not architecture.paired or not layer.endswith(("self_attn.q_proj", "self_attn.k_proj")):
        return order
    return order.view(-1, 2, _head_size(config) // 2).transpose(1, 2).reshape(-1)


def _tensor_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    module, _, leaf = name.rpartition(".")
    inside = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if inside and inside[2] in _MODULES:
        return f"blk.{inside[1]}.{_MODULES[inside[2]]}.{leaf}"
    require(module in _OUTSIDE, f"tensor {name!r} has no name in GGUF that lowbit knows.")
    return f"{_OUTSIDE[module]}.{leaf}"


def _plain(tensor: Tensor) -> tuple[np.ndarray[Any, Any], str]:
    """A tensor that is not quantized, and gguf's name of its type; vectors must be float32 in llama.cpp."""
    if tensor.ndim == 1 or tensor.dtype == torch.float32:
        return tensor.float().numpy(), "F32"
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint8).numpy(), "BF16"
    require(tensor.dtype == torch.float16, f"GGUF has no type for a tensor of {tensor.dtype}.")
    return tensor.numpy(), "F16"
