"""From a GGUF file to a lowbit folder: a layer of blocks that lowbit has a code for keeps its codes, all else is made
dense without being rounded.

The package gguf reads the file and decodes the types that lowbit has no code for; what it finds is held to the shapes
of the model that the file says it is before anything is written.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lowbit.core.errors import BadRequest, require
from lowbit.core.fields import bits_per_weight
from lowbit.core.layer import QuantizedLayer
from lowbit.core.recipe import to_dict
from lowbit.exchange.gguf_blocks import BLOCK_TYPES
from lowbit.exchange.gguf_header import check_lengths
from lowbit.exchange.gguf_names import ARCHITECTURES, parameter_name, row_order
from lowbit.exchange.tokens import read_tokenizer
from lowbit.formats.checkpoint import quantization_config, stored_tensors
from lowbit.formats.files import write_json_atomically, write_text_atomically
from lowbit.formats.folder import ShardWriter, staged
from lowbit.formats.legality import CONFIG_NAME
from lowbit.integrations.transformers import STUB_NAME, remote_code_stub
from lowbit.version import VERSION

_DENSE = ("F16", "F32", "BF16")
_TYPES = {kind.name: kind for kind in BLOCK_TYPES}
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def package() -> ModuleType:
    """The package gguf; raises BadRequest where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise BadRequest("GGUF needs the package gguf: pip install 'lowbit[gguf]'.") from error
    return gguf


def gguf_file(place: Path) -> Path | None:
    """The GGUF file that a user means: the file itself, or the only one of a folder that holds no model otherwise."""
    if place.suffix == ".gguf" and place.is_file():
        return place
    if not place.is_dir() or (place / CONFIG_NAME).exists():
        return None
    found = sorted(place.glob("*.gguf"))
    require(len(found) < 2, f"{place} holds several GGUF files. Name one, such as {found[0] if found else ''}.")
    return found[0] if found else None


def import_gguf(path: Path, out: Path) -> dict[str, Any]:
    """Write the model of the GGUF file `path` to `out` as a lowbit checkpoint, or a plain one if no layer has codes.

    Returns format, layers (how many), bytes of all tensors, bits_per_weight of the linear layers and
    source_bits_per_weight, what the file stores for those that it quantizes (None without any). Raises BadRequest,
    leaving nothing behind, where the file is not what it claims to be, the architecture or the tokenizer is not one
    that lowbit reads, or `out` is not empty.
    """
    fields, tensors = _read(path)
    try:
        config = _config(fields, tensors)
        shapes, linears = _skeleton(config)
        _check_names(tensors, shapes)
        described, bits, weights = {}, 0.0, sum(math.prod(shapes[name]) for name in linears & tensors.keys())
        with staged(out) as staging:
            writer = ShardWriter(staging)
            for name, tensor in tensors.items():
                found = _tensor(name, tensor, shapes[name], linears, config)
                if isinstance(found, Tensor):
                    writer.add({name: found})
                    bits += 8 * found.nbytes * (name in linears)
                    continue
                layer = name.removesuffix(".weight")
                writer.add({f"{layer}.{field}": part for field, part in stored_tensors(found).items()})
                described[layer] = (to_dict(found.recipe), found.shape)
                bits += bits_per_weight(found.recipe.fields(found.shape), found.shape) * found.codes.numel()
            writer.close()
            read_tokenizer(fields, path, staging)
            text, auto_map = remote_code_stub(config["architectures"][0])
            if described:
                write_text_atomically(staging / f"{STUB_NAME}.py", text)
                config |= {"auto_map": auto_map, "quantization_config": quantization_config(described, VERSION)}
            write_json_atomically(staging / CONFIG_NAME, config)
    except BadRequest as error:
        raise BadRequest(f"{path}: {error}") from error
    return {
        "format": "gguf",
        "layers": len(described),
        "bytes": writer.nbytes,
        "bits_per_weight": bits / weights,
        "source_bits_per_weight": _bits_there([tensors[name] for name in linears & tensors.keys()]),
    }


def _bits_there(linears: Sequence[Any]) -> float | None:
    quantized = [tensor for tensor in linears if tensor.tensor_type.name not in _DENSE]
    weights = sum(int(tensor.n_elements) for tensor in quantized)
    return 8 * sum(int(tensor.n_bytes) for tensor in quantized) / weights if weights else None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings by name, and tensors of the package's kind by transformers' name."""
    gguf = package()
    try:
        check_lengths(path)
    except BadRequest as error:
        raise BadRequest(f"{path}: {error} Download or copy it again.") from error
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError) as error:
        raise BadRequest(f"{path} is damaged: {error}. Download or copy it again.") from error
    try:
        return fields, {parameter_name(name): tensor for name, tensor in tensors.items()}
    except BadRequest as error:
        raise BadRequest(f"{path}: {error}") from error


def _config(fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' configuration of the model."""
    kind = fields.get("general.architecture")
    known = dict.fromkeys(architecture.name for architecture in ARCHITECTURES.values())
    if kind not in known:
        raise BadRequest(f"it is a {kind!r}; lowbit reads {', '.join(known)}.")
    scaling = fields.get(f"{kind}.rope.scaling.type", "none")
    require(scaling == "none", f"its rotary embeddings are scaled ({scaling}), which lowbit's reader does not know.")
    blocks = _count(fields, f"{kind}.block_count")
    last = max((int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")), default=-1)
    require(last == blocks - 1, f"{kind}.block_count is {blocks}, but its tensors are of blocks 0 to {last}.")
    hidden, heads = _count(fields, f"{kind}.embedding_length"), _count(fields, f"{kind}.attention.head_count")
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise BadRequest("it has no embedding (token_embd.weight).")
    biased = "model.layers.0.self_attn.q_proj.bias" in tensors
    names = {"bos_token_id": "tokenizer.ggml.bos_token_id", "eos_token_id": "tokenizer.ggml.eos_token_id"}
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": int(embedding.shape[1]),
        "hidden_size": hidden,
        "intermediate_size": _count(fields, f"{kind}.feed_forward_length"),
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": _count(fields, f"{kind}.attention.head_count_kv", heads),
        "head_dim": _count(fields, f"{kind}.attention.key_length", hidden // heads),
        "max_position_embeddings": _count(fields, f"{kind}.context_length"),
        "rms_norm_eps": _positive(fields, f"{kind}.attention.layer_norm_rms_epsilon", 1e-5),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _positive(fields, f"{kind}.rope.freq_base", 10000.0),
        },
        "attention_bias": biased,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "dtype": "float32",
    } | {name: fields[key] for name, key in names.items() if isinstance(fields.get(key), int)}


def _count(fields: Mapping[str, Any], key: str, default: int | None = None) -> int:
    found = fields.get(key, default)
    if not isinstance(found, int) or not 1 <= found <= 1 << 24:
        raise BadRequest(f"{key} is {found!r}, but must be a whole number from 1 on.")
    return found


def _positive(fields: Mapping[str, Any], key: str, default: float) -> float:
    found = fields.get(key, default)
    if not isinstance(found, float) or not 0 < found < float("inf"):
        raise BadRequest(f"{key} is {found!r}, but must be a positive number.")
    return found


def _skeleton(config: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """The shape of every parameter of the model, and which are weights of linear layers."""
    settings = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    try:
        with torch.device("meta"):
            made = AutoConfig.for_model(config["model_type"], **settings)
            model = AutoModelForCausalLM.from_config(made)  # type: ignore[no-untyped-call]
    except (ValueError, ArithmeticError, StrictDataclassError) as error:
        raise BadRequest(f"its settings do not make a model: {error}") from error
    linears = frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}, linears


def _check_names(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise BadRequest unless there are exactly the model's tensors, each of its shape."""
    for name in shapes.keys() - tensors.keys():
        raise BadRequest(f"tensor {name} of the model it says it is, is missing. Download or copy it again.")
    for name, tensor in tensors.items():
        require(name in shapes, f"it holds {tensor.name}, which the model it says it is does not have.")
        found = tuple(int(size) for size in tensor.shape[::-1])
        require(found == shapes[name], f"tensor {tensor.name} is {found}, but the model has {shapes[name]}.")


def _tensor(
    name: str, tensor: Any, shape: tuple[int, ...], linears: frozenset[str], config: Mapping[str, Any]
) -> Tensor | QuantizedLayer:
    """A layer of a type that lowbit has a code for, any other tensor dense, rows in transformers' order."""
    gguf, kind = package(), tensor.tensor_type.name
    architecture = ARCHITECTURES[config["model_type"]]
    rows = row_order(name.rpartition(".")[0], shape[0], config, architecture).argsort()
    try:
        if name in linears and kind in _TYPES:
            return _TYPES[kind].layer(torch.from_numpy(np.array(tensor.data))[rows], "gguf_import")
        if kind in ("F16", "F32"):
            return torch.from_numpy(np.array(tensor.data))[rows]
        if kind == "BF16":
            return torch.from_numpy(np.array(tensor.data).view(np.uint8)).view(torch.bfloat16).view(shape)[rows]
        return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))[rows]
    except BadRequest as error:
        raise BadRequest(f"tensor {tensor.name} ({kind}): {error}") from error
    except NotImplementedError as error:
        raise BadRequest(f"tensor {tensor.name} is of type {kind}, which the package gguf cannot decode.") from error
