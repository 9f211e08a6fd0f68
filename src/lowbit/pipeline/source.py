"""The model to quantize: its shape at once, its weights only where and while they are needed.

The module tree is built on torch's meta device, which holds no data; `load` fills one module (a block) from the
safetensors shards and `release` empties it again; of the embedding and the output head only rows are read. Buffers
that a model computes for itself (rotary frequencies) are recomputed by the model's own initialiser, as transformers
does when it loads. A finished checkpoint is opened the same way, with quantized layers in place of linear ones.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from lowbit.core.errors import BadRequest
from lowbit.core.linalg import all_finite
from lowbit.formats.shards import Shards
from lowbit.integrations.hub import resolve_folder
from lowbit.integrations.loading import empty_model
from lowbit.pipeline.architecture import Block, architecture_of, expert_key, find_blocks, separate_experts
from lowbit.pipeline.tables import looked_up, multiplied
from lowbit.runtime import QuantizedLinear
from lowbit.runtime.experts import is_fused_experts

# What transformers raises for a configuration that makes no sense, as it is read or as its model is built.
_SENSELESS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


def read_config(folder: Path) -> PretrainedConfig:
    """The model's configuration; BadRequest where the folder holds none or not that of a causal language model."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadRequest(f"{folder}: no config.json. Give a Hugging Face model folder.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder)
    except _SENSELESS as error:
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
        tree = _empty_tree(config, shards)
        keys = _parameter_keys(tree, shards)
        separate_experts(tree)
        tree.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
        _require_all(tree, keys, shards)
        return cls(folder, config, tree, find_blocks(tree, config.num_hidden_layers), shards, keys)

    @classmethod
    def open_quantized(cls, folder: Path) -> "SourceModel":
        """The same of a lowbit checkpoint; raises BadRequest where it is not legal."""
        tree, shards = empty_model(folder), Shards.open(folder)
        config, keys = tree.config, _parameter_keys(tree, shards)
        tree.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
        _require_all(tree, keys, shards)
        return cls(folder, config, tree, find_blocks(tree, config.num_hidden_layers), shards, keys)

    @property
    def context(self) -> int:
        """The longest sequence the model is made for."""
        return int(self.config.max_position_embeddings)

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    def load(self, module: nn.Module, prefix: str, leave: Set[str] = frozenset()) -> None:
        """Give `module`, at path `prefix`, its weights (but those named in `leave`) as float32, and its buffers."""
        for name, part in module.named_modules():
            path = ".".join(filter(None, (prefix, name)))
            if isinstance(part, QuantizedLinear):
                for leaf in dict(part.named_buffers(recurse=False)):
                    part.register_buffer(leaf, self.shards.load(self.keys[f"{path}.{leaf}"]))
            elif next(part.buffers(recurse=False), None) is not None:
                part.to_empty(device="cpu", recurse=False)
                self.model._init_weights(part)  # type: ignore[no-untyped-call]
            for leaf in dict(part.named_parameters(recurse=False)):
                key = self.keys.get(f"{path}.{leaf}")
                if key is not None and f"{path}.{leaf}" not in leave:  # a tied weight has no key of its own
                    part.register_parameter(leaf, nn.Parameter(self.shards.load(key).float(), requires_grad=False))

    @contextmanager
    def outside_blocks(self) -> Iterator[PreTrainedModel]:
        """The model, with everything but its decoder blocks in memory or, rows of large tables, read when asked for."""
        names = {module: f"{name}.weight" for name, module in self.model.named_modules()}
        embedding = self.model.get_input_embeddings()
        head: nn.Module | None = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        tables: dict[str, AbstractContextManager[None]] = {}
        if isinstance(embedding, nn.Embedding) and (key := self._stored_as(names[embedding])):
            tables[names[embedding]] = looked_up(embedding, functools.partial(self._rows, key))
        if isinstance(head, nn.Linear) and (key := self._stored_as(names[head])):
            tables[names[head]] = multiplied(head, functools.partial(self._rows, key))
        try:
            self._load_children(self.model, "", {block.name for block in self.blocks}, tables.keys())
            self.model.tie_weights()
            with ExitStack() as stack:
                for table in tables.values():
                    stack.enter_context(table)
                yield self.model
        finally:
            self.release(self.model)

    def _stored_as(self, name: str) -> str | None:
        """The key of a weight, or of the one that it is tied to."""
        tied = self.model.all_tied_weights_keys
        return self.keys.get(name) or self.keys.get(tied.get(name, ""))

    def _rows(self, key: str, start: int, stop: int) -> Tensor:
        return self.shards.load_rows(key, start, stop).float()

    def _load_children(self, module: nn.Module, path: str, blocks: Set[str], leave: Set[str]) -> None:
        if path in blocks:
            return
        children = dict(module.named_children())
        if not any(block.startswith(f"{path}." if path else "") for block in blocks):
            self.load(module, path, leave)
            return
        for name, child in children.items():
            self._load_children(child, ".".join(filter(None, (path, name))), blocks, leave)

    def release(self, module: nn.Module) -> None:
        """Give the memory of a module's parameters back."""
        module.to("meta")

    def digest(self, progress: Callable[[int, int], None] | None = None) -> str:
        """sha256 over configuration and shards; raises BadRequest naming a tensor that holds NaN or Inf."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        done = 0
        for name, entry in sorted(self.shards.entries.items()):
            tensor = self.shards.load(name)
            if tensor.is_floating_point() and not all_finite(tensor):
                raise BadRequest(f"{entry.file}: tensor {name} holds NaN or Inf. Get a sound copy of the model.")
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            done += entry.nbytes
            if progress is not None:
                progress(done, self.shards.nbytes)
        return digest.hexdigest()


def _empty_tree(config: PretrainedConfig, shards: Shards) -> PreTrainedModel:
    """The model of a configuration, without weights; BadRequest where none can be built, before that takes memory."""
    path, count = shards.folder / "config.json", config.num_hidden_layers
    if not isinstance(count, int) or not 1 <= count <= len(shards.entries):
        raise BadRequest(f"{path}: num_hidden_layers is {count!r}, and the shards hold {len(shards.entries)} tensors.")
    try:
        with torch.device("meta"):
            tree: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except _SENSELESS as error:
        raise BadRequest(f"{path}: no model can be built from it: {type(error).__name__}: {error}") from error
    fused = (module for module in tree.modules() if is_fused_experts(module))
    experts = max((len(part) for module in fused for part in module.parameters(recurse=False)), default=0)
    if experts > len(shards.entries):
        raise BadRequest(f"{path}: describes {experts} experts, and the shards hold {len(shards.entries)} tensors.")
    return tree


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


def _require_all(model: PreTrainedModel, keys: dict[str, str], shards: Shards) -> None:
    """Raise BadRequest unless the shards hold all that the model needs, in its shapes."""
    tied = set(model.all_tied_weights_keys)
    missing = [name for name, _ in model.named_parameters() if name not in keys and name not in tied]
    if missing:
        raise BadRequest(
            f"{shards.folder}: the shards lack {len(missing)} tensors of a {type(model).__name__}, such as "
            f"{missing[0]}. The download is incomplete or the architecture is stored in a way lowbit does not know."
        )
    for name, parameter in model.named_parameters():
        stored = shards.entries[keys[name]].shape if name in keys else parameter.shape
        if stored != tuple(parameter.shape):
            raise BadRequest(
                f"{shards.folder}: {keys[name]} is {list(stored)} in the shards, but config.json describes "
                f"{list(parameter.shape)}. They belong to different models."
            )
