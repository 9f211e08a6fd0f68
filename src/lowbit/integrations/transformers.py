"""lowbit checkpoints in transformers: `AutoModelForCausalLM.from_pretrained(folder)` after `import lowbit`.

Importing this module registers lowbit, which `import lowbit` leaves until transformers itself is imported.

transformers calls the quantizer while the model is an empty skeleton on "meta". The layers that config.json lists are
replaced by `QuantizedLinear`, whose buffers have the names, types and shapes of the stored tensors, and the loader then
copies bytes. Fused experts become one module for each expert first. The replaced skeletons are kept (they hold no
memory), so that `model.dequantize()` gives back the very modules the architecture began with.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, WeightTransform
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowbit.core.errors import BadRequest, require
from lowbit.core.recipe import Recipe
from lowbit.formats.checkpoint import QUANT_METHOD, check_layout, parse_quantization_config, stored_fields
from lowbit.formats.shards import Entry, read_header
from lowbit.recipes import from_dict
from lowbit.runtime import LinearExperts, QuantizedLinear, is_fused_experts

STUB_NAME = "modeling_lowbit"
Layers = dict[str, tuple[Recipe, tuple[int, int]]]


class LowbitConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json, kept as it is. Raises BadRequest where this lowbit cannot read it."""

    def __init__(self, **entries: Any) -> None:
        parse_quantization_config(entries)
        self.__dict__.update(entries)

    def layers_by_name(self) -> Layers:
        """Recipe and shape [N, K] of each quantized layer."""
        return parse_quantization_config(self.to_dict()).layers_with(from_dict)


class LowbitQuantizer(HfQuantizer):
    """Builds the quantized skeleton that a checkpoint's tensors fit in."""

    requires_calibration = True
    quantization_config: LowbitConfig

    def __init__(self, quantization_config: QuantizationConfigMixin, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._skeletons: dict[str, nn.Module] = {}

    @property
    def is_trainable(self) -> bool:
        return True  # by adapters beside the codes; transformers itself refuses to train a quantized model without

    def is_serializable(self) -> bool:
        return True

    def update_weight_conversions(self, weight_conversions: list[WeightTransform], model: PreTrainedModel) -> Any:
        """Drop the conversions into parameters that are no longer there: merging the experts that we separate."""
        names = "\n".join(name for name, _ in model.named_parameters())
        return [one for one in weight_conversions if not isinstance(one, WeightConverter) or _has_target(one, names)]

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        layers = self.quantization_config.layers_by_name()
        if checkpoint_files is not None:
            _check_files(layers, checkpoint_files)
        names = [_local_name(model, name) for name in layers]
        for name in names:
            require(
                f"{name}.weight" not in model.all_tied_weights_keys,
                f"Layer {name!r} is quantized, but config.json ties its weight. Set tie_word_embeddings=false.",
            )
        for name, module in list(model.named_modules()):
            if is_fused_experts(module) and any(layer.startswith(f"{name}.") for layer in names):
                self._skeletons[name] = module
                model.set_submodule(name, LinearExperts.from_fused(module))
        modules = dict(model.named_modules())
        for name, (recipe, shape) in zip(names, layers.values(), strict=True):
            require(
                name in modules, f"The checkpoint has a quantized layer {name!r}, which {type(model).__name__} lacks."
            )
            self._skeletons[name] = modules[name]
            model.set_submodule(name, _quantized(name, modules[name], recipe, shape))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        # What is saved has the names of the modules, as what was loaded.
        vars(model)["_weight_conversions"] = []
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        fused = {name: module for name, module in self._skeletons.items() if is_fused_experts(module)}
        for name in self._skeletons.keys() - fused.keys():
            quantized = model.get_submodule(name)
            assert isinstance(quantized, QuantizedLinear)
            model.set_submodule(name, _dense(self._skeletons[name], quantized, dtype))
        for name, module in fused.items():
            experts = model.get_submodule(name)
            assert isinstance(experts, LinearExperts)
            experts.fuse_into(module)
            model.set_submodule(name, module)
        self._skeletons = {}
        # Saved as a dense model of its kind, under the names that the hub uses.
        vars(model)["_weight_conversions"] = None
        return model


def register() -> None:
    """Make transformers know lowbit; a second call changes nothing."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(LowbitConfig)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(LowbitQuantizer)


def remote_code_stub(architecture: str) -> tuple[str, dict[str, str]]:
    """Text of a `modeling_lowbit.py` to lay beside config.json, and the `auto_map` that names it.

    transformers discovers no plug-ins. With `trust_remote_code=True` it reads the file, finds that it needs lowbit, and
    either imports it, which registers the quantizer in time, or asks the user to install it. Without, the folder is
    read as if it had no stub. Its configuration is in it for programs that choose the model's class by themselves, as
    `transformers serve` does.
    architecture: the model's class in transformers; the stub's classes have the same names, so that a model loaded
    through it is saved under those that other tools know. Raises BadRequest where transformers has no such class.
    """
    model = getattr(transformers, architecture, None)
    if model is None:
        raise BadRequest(f"transformers {transformers.__version__} has no class {architecture!r}.")
    config = model.config_class.__name__
    text = f'''"""The weights in this folder are quantized by lowbit; importing it makes transformers read them."""

import lowbit  # noqa: F401
import transformers


class {config}(transformers.{config}):
    pass


class {architecture}(transformers.{architecture}):
    config_class = {config}
'''
    names = {"AutoConfig": config, "AutoModelForCausalLM": architecture}
    return text, {door: f"{STUB_NAME}.{name}" for door, name in names.items()}


def _has_target(converter: WeightConverter, names: str) -> bool:
    return any(re.search(f"{target}$", names, re.MULTILINE) for target in converter._original_target_patterns)


def _local_name(model: PreTrainedModel, name: str) -> str:
    """A layer's name in this model, which may be the bare backbone of the one that was quantized."""
    return name if hasattr(model, model.base_model_prefix) else name.removeprefix(f"{model.base_model_prefix}.")


def _quantized(name: str, module: nn.Module, recipe: Recipe, shape: tuple[int, int]) -> QuantizedLinear:
    require(
        isinstance(module, nn.Linear | Conv1D),
        f"The checkpoint has a quantized layer {name!r}, but there the model has {type(module).__name__}.",
    )
    own = module.get_parameter("weight").shape
    expected = tuple(own[::-1] if isinstance(module, Conv1D) else own)
    require(expected == shape, f"Layer {name!r} is {list(expected)} in the model but {list(shape)} in the checkpoint.")
    with torch.device("meta"):
        bias = dict(module.named_parameters(recurse=False)).get("bias")
        return QuantizedLinear(recipe, shape, None if bias is None else bias.dtype)


def _dense(skeleton: nn.Module, quantized: QuantizedLinear, dtype: torch.dtype | None) -> nn.Module:
    weight = quantized.dequantize().to(dtype)
    if isinstance(skeleton, Conv1D):
        weight = weight.T.contiguous()
    skeleton.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    skeleton.register_parameter("bias", _cast(quantized.bias, dtype))
    return skeleton


def _cast(bias: Tensor | None, dtype: torch.dtype | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)


def _check_files(layers: Layers, files: Sequence[str]) -> None:
    """The headers hold every tensor of every layer: transformers would fill a gap with noise and a warning."""
    entries: dict[str, Entry] = {}
    for file in files:
        entries |= read_header(Path(file))[0]
    for layer, (recipe, shape) in layers.items():
        for name, field in stored_fields(recipe, shape).items():
            entry = entries.get(f"{layer}.{name}")
            if entry is None:
                raise BadRequest(f"{Path(files[0]).parent} lacks tensor '{layer}.{name}'. Download or copy it again.")
            check_layout(f"{layer}.{name}", field, entry.dtype, entry.shape)


register()
