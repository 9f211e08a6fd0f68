"""The model to quantize: its shape at once, its weights only where and while they are needed.

The module tree is built on torch's meta device, which holds no data; `load` fills one module (a block, the
embedding) from the safetensors shards and `release` empties it again. Buffers that a model computes for itself
(rotary frequencies) are recomputed by the model's own initialiser, as transformers does when it loads.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from lowbit.core.errors import BadRequest
from lowbit.formats.shards import Shards
from lowbit.pipeline.architecture import Block, architecture_of, expert_key, find_blocks, separate_experts

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]


def resolve_folder(model: str) -> Path:
    """A local folder as it is, anything else as a name on the hub, downloaded (or found in its cache)."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise BadRequest(f"{model}: not a folder. Give a Hugging Face model folder or a name on the hub.")
    try:
        return Path(snapshot_download(model, allow_patterns=_SMALL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadRequest(
            f"{model}: neither a folder here nor a model that the hub gave ({type(error).__name__}). "
            "Check the spelling and the connection."
        ) from error


def read_config(folder: Path) -> PretrainedConfig:
    """The model's configuration; BadRequest where the folder holds none or not that of a causal language model."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadRequest(f"{folder}: no config.json. Give a Hugging Face model folder.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        raise BadRequest(f"{path}: cannot be read as a model configuration: {error}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise BadRequest(
            f"{folder}: {data.get('model_type')!r} is not a causal language model. "
            "lowbit quantizes models that AutoModelForCausalLM loads."
        )
    return config


@dataclass(frozen=True, eq=False)
class SourceModel:
    """keys: parameter name -> key in the shards. blocks: the decoder blocks, in order."""

    folder: Path
    config: PretrainedConfig
    model: PreTrainedModel
    blocks: list[Block]
    shards: Shards
    keys: dict[str, str]

    @classmethod
    def open(cls, model: str) -> "SourceModel":
        """Read configuration and shard headers and build the empty module tree; no weights are read."""
        folder = resolve_folder(model)
        config = read_config(folder)
        quantized = getattr(config, "quantization_config", None)
        if quantized is not None:
            raise BadRequest(f"{folder} is quantized already ({_method(quantized)}). Give the original model.")
        shards = Shards.open(folder)
        with torch.device("meta"):
            tree = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        keys = _parameter_keys(tree, shards)
        separate_experts(tree)
        tree.eval().requires_grad_(False)
        _require_all(tree, keys, folder)
        return cls(folder, config, tree, find_blocks(tree, config.num_hidden_layers), shards, keys)

    @property
    def context(self) -> int:
        """The longest sequence the model is made for."""
        return int(self.config.max_position_embeddings)

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    def load(self, module: nn.Module, prefix: str, dtype: torch.dtype = torch.float32) -> None:
        """Give `module`, at path `prefix`, its weights and buffers."""
        for name, part in module.named_modules():
            path = ".".join(filter(None, (prefix, name)))
            if next(part.buffers(recurse=False), None) is not None:
                part.to_empty(device="cpu", recurse=False)
                self.model._init_weights(part)  # type: ignore[no-untyped-call]
            for leaf in dict(part.named_parameters(recurse=False)):
                key = self.keys.get(f"{path}.{leaf}")
                if key is not None:  # a tied weight has no key of its own
                    value = self.shards.load(key).to(dtype)
                    part.register_parameter(leaf, nn.Parameter(value, requires_grad=False))

    def load_outside_blocks(self) -> None:
        """Load everything but the decoder blocks: embeddings, final norm, output head."""
        blocks = {block.name for block in self.blocks}
        self._load_children(self.model, "", blocks)
        self.model.tie_weights()

    def _load_children(self, module: nn.Module, path: str, blocks: set[str]) -> None:
        if path in blocks:
            return
        children = dict(module.named_children())
        if not any(block.startswith(f"{path}." if path else "") for block in blocks):
            self.load(module, path)
            return
        for name, child in children.items():
            self._load_children(child, ".".join(filter(None, (path, name))), blocks)

    def release(self, module: nn.Module) -> None:
        """Give the memory of a module's parameters back."""
        module.to("meta")

    def digest(self, progress: Callable[[int, int], None] | None = None) -> str:
        """sha256 over configuration and shards; raises BadRequest naming a tensor that holds NaN or Inf."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        done = 0
        for name, entry in sorted(self.shards.entries.items()):
            tensor = self.shards.load(name)
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise BadRequest(f"{entry.file}: tensor {name} holds NaN or Inf. Get a sound copy of the model.")
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            done += entry.nbytes
            if progress is not None:
                progress(done, self.shards.nbytes)
        return digest.hexdigest()


def _method(quantization_config: object) -> str:
    if isinstance(quantization_config, dict):
        return str(quantization_config.get("quant_method"))
    return str(getattr(quantization_config, "quant_method", quantization_config))


def _parameter_keys(model: PreTrainedModel, shards: Shards) -> dict[str, str]:
    """Parameter name -> checkpoint key, through transformers' own renamings and the table's expert names."""
    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    known, prefix = model.state_dict(), model.base_model_prefix
    architecture = architecture_of(model.config.model_type)
    keys = {}
    for key in shards.entries:
        name, _ = rename_source_key(key, renamings, [], prefix, known)
        keys[expert_key(name, architecture)] = key
    return keys


def _require_all(model: PreTrainedModel, keys: dict[str, str], folder: Path) -> None:
    tied = set(model.all_tied_weights_keys)
    missing = [name for name, _ in model.named_parameters() if name not in keys and name not in tied]
    if missing:
        raise BadRequest(
            f"{folder}: the shards lack {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}. "
            "The download is incomplete or the architecture is stored in a way lowbit does not know."
        )
