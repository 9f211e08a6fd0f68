"""GGUF, the one-file format of llama.cpp: every layer in the smallest block type that holds its codes exactly.

Tensors that are not quantized keep their type, vectors become float32. Needs the package gguf
(`pip install 'lowbit[gguf]'`).

Source: llama.cpp's convert_hf_to_gguf.py and the GGUF specification, for the keys.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.exchange import gguf_blocks
from lowbit.exchange.exporting import layer_for, open_checkpoint
from lowbit.exchange.gguf_import import package
from lowbit.exchange.gguf_names import ARCHITECTURES, head_size, row_order, tensor_name
from lowbit.exchange.requantize import Requantize
from lowbit.exchange.tokens import write_tokenizer
from lowbit.formats.checkpoint import stored_fields
from lowbit.formats.folder import staged

FILE_NAME = "model.gguf"
HOLDS = "K-quants (recipe kquant), and integers of up to 8 bits in groups of a multiple of 32 columns in order"


def export_gguf(folder: Path, out: Path, bits: int | None = None) -> dict[str, Any]:
    """Write the lowbit checkpoint `folder` to `out`/model.gguf, with the same codes.

    Takes `bits`, returns and raises as `export_folder` does; also BadRequest where the package gguf is missing, or the
    architecture or the tokenizer is not one whose metadata lowbit knows how to write.
    """
    gguf = package()
    config, layers, shards = open_checkpoint(folder)
    kind = str(config.get("model_type"))
    require(kind in ARCHITECTURES, f"GGUF of a {kind} is not known to lowbit. It writes {', '.join(ARCHITECTURES)}.")
    architecture = ARCHITECTURES[kind]
    again = None if bits is None else Requantize.into("gguf", bits, [shape for _, shape in layers.values()])
    stored_bytes = weights = requantized = 0
    with staged(out) as staging:
        writer = gguf.GGUFWriter(staging / FILE_NAME, architecture.name, use_temp_file=True)
        _write_settings(writer, config)
        write_tokenizer(writer, folder, config)
        taken = set()
        for name, (recipe, shape) in layers.items():
            taken |= {f"{name}.{field}" for field in stored_fields(recipe, shape)}
            layer, exact = layer_for("gguf", HOLDS, shards, name, (recipe, shape), again)
            requantized += not exact
            block, fields = gguf_blocks.stored(layer)
            rows = row_order(name, shape[0], config, architecture)
            packed = block.blocks({field: values[rows] for field, values in fields.items()}).numpy()
            writer.add_tensor(tensor_name(f"{name}.weight"), packed, raw_dtype=gguf.GGMLQuantizationType[block.name])
            stored_bytes += packed.nbytes
            weights += shape[0] * shape[1]
        for name in (name for name in shards.entries if name not in taken):
            tensor = shards.load(name)
            tensor = tensor[row_order(name.rpartition(".")[0], len(tensor), config, architecture)]
            data, dtype = _plain(tensor)
            writer.add_tensor(tensor_name(name), data, raw_dtype=gguf.GGMLQuantizationType[dtype])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with (staging / FILE_NAME).open("rb") as file:
            os.fsync(file.fileno())
    size = (out / FILE_NAME).stat().st_size
    return {
        "format": "gguf",
        "layers": len(layers),
        "requantized": requantized,
        "bytes": size,
        "bits_per_weight": 8 * stored_bytes / weights,
    }


def _write_settings(writer: Any, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"}
    require(
        rope.get("rope_type", "default") == "default",
        f"rotary embeddings of type {rope.get('rope_type')!r} are not known to lowbit's GGUF writer, only plain ones.",
    )
    heads, head = config["num_attention_heads"], head_size(config)
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


def _plain(tensor: Tensor) -> tuple[np.ndarray[Any, Any], str]:
    """A tensor that is not quantized, and gguf's name of its type; vectors must be float32 in llama.cpp."""
    if tensor.ndim == 1 or tensor.dtype == torch.float32:
        return tensor.float().numpy(), "F32"
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint8).numpy(), "BF16"
    require(tensor.dtype == torch.float16, f"GGUF has no type for a tensor of {tensor.dtype}.")
    return tensor.numpy(), "F16"
