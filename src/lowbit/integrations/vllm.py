"""lowbit folders in vLLM: a quantization method from outside its tree, found by lowbit's entry point.

vLLM joins layers that share an input (q, k and v; gate and up) into one. Their codes stay apart here: a joined layer
holds one `QuantizedLinear` for each part, so parts may differ in recipe, or be left unquantized, and

    y = [part_1(x), part_2(x), ...] + bias

vLLM hands over each stored tensor by name and part; it goes into that part's buffer, byte for byte. The product is one
operation to `torch.compile`, whose graphs therefore stay whole. Codes are not cut: tensor parallelism is refused.

This module imports vLLM and is imported by nothing in lowbit; the entry point `vllm.general_plugins` calls `register`.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from lowbit.core.errors import require
from lowbit.core.recipe import Recipe
from lowbit.formats.checkpoint import QUANT_METHOD, parse_quantization_config
from lowbit.recipes import from_dict
from lowbit.runtime import QuantizedLinear

Layers = dict[str, tuple[Recipe, tuple[int, int]]]
_LETTERS = ("q", "k", "v")  # what vLLM calls the parts of qkv_proj; those of others are numbers


def register() -> None:
    """Make vLLM know lowbit; called in each of its processes, a second call changes nothing."""
    register_quantization_config(QUANT_METHOD)(LowbitVllmConfig)


class LowbitVllmConfig(QuantizationConfig):
    """The `quantization_config` of config.json. layers: recipe and shape [N, K] by name."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LowbitVllmConfig":
        return cls(parse_quantization_config(config).layers_with(from_dict))

    def get_name(self) -> str:
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return -1  # any device

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        self.layers = hf_to_vllm_mapper.apply_dict(self.layers)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """None for what is not a linear layer. Raises BadRequest where such a layer is quantized."""
        if isinstance(layer, LinearBase):
            parts = self.parts_of(prefix)
            return LowbitLinearMethod(prefix, parts, self.layers) if parts else UnquantizedLinearMethod()
        inside = next((name for name in self.layers if name == prefix or name.startswith(f"{prefix}.")), None)
        require(
            inside is None,
            f"{prefix}: vLLM has {type(layer).__name__} where the checkpoint quantizes {inside}; lowbit serves linear "
            "layers in vLLM. Quantize again with --ignore for these, or serve with transformers.",
        )
        return None

    def parts_of(self, prefix: str) -> list[str]:
        """Names, in the checkpoint, of the parts of a layer of vLLM; none where no part is quantized."""
        if prefix in self.layers:
            return [prefix]
        parent, dot, last = prefix.rpartition(".")
        names = [f"{parent}{dot}{part}" for part in self.packed_modules_mapping.get(last, ())]
        return names if any(name in self.layers for name in names) else []


class LowbitLinearMethod(LinearMethodBase):
    """What a linear layer of vLLM holds and does. parts: names in the checkpoint of what it joins, in order."""

    def __init__(self, prefix: str, parts: Sequence[str], layers: Layers) -> None:
        self.prefix, self.parts, self.layers = prefix, parts, layers
        self._loaded: set[tuple[int, str]] = set()
        self._number = -1

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register the parts and, under each stored name, the door by which vLLM hands over tensors of that name."""
        whole = input_size_per_partition == input_size and sum(output_partition_sizes) == output_size
        require(
            whole,
            f"{self.prefix}: lowbit's codes are not cut over devices. Use --tensor-parallel-size 1; "
            "--pipeline-parallel-size and --data-parallel-size may be more.",
        )
        sizes = output_partition_sizes if len(self.parts) > 1 else [output_size]
        require(len(sizes) == len(self.parts), f"{self.prefix} joins {len(sizes)} layers, not {', '.join(self.parts)}.")
        shapes = ((n, input_size) for n in sizes)
        joined = _Joined(self._part(*part, params_dtype) for part in zip(self.parts, shapes, strict=True))
        layer.register_module("parts", joined)
        for field, dtype in {name: buffer.dtype for part in joined for name, buffer in part.named_buffers()}.items():
            door = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
            vars(door)["weight_loader"] = self._loader(joined, field)
            layer.register_parameter(field, door)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Close the doors; raises BadRequest where a tensor did not come."""
        joined = _parts_of(layer)
        for index, part in enumerate(joined):
            for field, _ in part.named_buffers():
                require(
                    (index, field) in self._loaded,
                    f"The checkpoint lacks tensor '{self.parts[index]}.{field}'. Download or copy it again.",
                )
        for name, _ in list(layer.named_parameters(recurse=False)):
            if name != "bias":
                layer.register_parameter(name, None)
        self._number = _enter(joined)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] to [..., N] in x's type."""
        y = joined_product(x, self._number, _parts_of(layer).out_features)
        return y if bias is None else y + bias

    def _part(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> "QuantizedLinear | _Dense":
        if name not in self.layers:
            return _Dense(shape, dtype)
        recipe, stored = self.layers[name]
        require(shape == stored, f"Layer {name!r} is {list(shape)} in vLLM but {list(stored)} in the checkpoint.")
        return QuantizedLinear(recipe, shape)

    def _loader(self, joined: nn.ModuleList, field: str) -> Callable[..., None]:
        """vLLM says which part a tensor is for by an argument or, since 0.33, by an attribute of the tensor."""

        def load(door: nn.Parameter, tensor: Tensor, shard_id: str | int | None = None) -> None:
            shard = getattr(tensor, "shard_id", None) if shard_id is None else shard_id
            index = 0 if shard is None else _LETTERS.index(shard) if isinstance(shard, str) else shard
            buffers = dict(joined[index].named_buffers())
            name = f"{self.parts[index]}.{field}"
            require(field in buffers, f"Tensor {name!r} is not one that this layer stores.")
            own = buffers[field]
            require(
                tensor.shape == own.shape and (tensor.dtype == own.dtype or isinstance(joined[index], _Dense)),
                f"Tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, not {own.dtype} {list(own.shape)}.",
            )
            own.copy_(tensor)
            self._loaded.add((index, field))

        return load


class _Joined(nn.ModuleList):
    def __init__(self, parts: "Iterable[QuantizedLinear | _Dense]") -> None:
        parts = list(parts)
        super().__init__(parts)
        self.out_features = sum(part.out_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self], dim=-1)


def _parts_of(layer: nn.Module) -> _Joined:
    parts = layer.get_submodule("parts")
    assert isinstance(parts, _Joined)
    return parts


class _Dense(nn.Module):
    """A part that is not quantized; its weight is a buffer, so that vLLM loads it through the joined layer's door."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.register_buffer("weight", torch.empty(shape, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.get_buffer("weight"))


_ENTERED: WeakValueDictionary[int, _Joined] = WeakValueDictionary()
_NUMBERS = count()


def _enter(joined: _Joined) -> int:
    """The number by which a graph, which holds no modules, names one."""
    number = next(_NUMBERS)
    _ENTERED[number] = joined
    return number


@torch.library.custom_op("lowbit::joined_product", mutates_args=())
def joined_product(x: Tensor, joined: int, outputs: int) -> Tensor:
    """x [..., K] through the joined layer of this number: [..., outputs]."""
    return _ENTERED[joined](x)


@joined_product.register_fake
def _(x: Tensor, joined: int, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


__all__ = ["LowbitLinearMethod", "LowbitVllmConfig", "register"]
