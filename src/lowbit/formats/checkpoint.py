"""lowbit's own format, version 1: which tensors a quantized layer stores, and what config.json says about it.

The recipe's declaration (`Recipe.fields`) is the whole specification: sizes, names, types and packing follow from it.
For a layer P, the codes are stored as `P.weight` and every other field F as `P.F`; fields of Bits are packed into
one-dimensional uint8 tensors. The codes take the dense weight's name so that a loader that does not know lowbit
stops at a shape mismatch, where a missing name would give it random weights and a warning. docs/format.md has it all.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, LowbitError, require
from lowbit.core.fields import Bits, Field
from lowbit.core.layer import QuantizedLayer, restore_layer
from lowbit.core.recipe import Recipe
from lowbit.packing import pack, unpack

QUANT_METHOD = "lowbit"
FORMAT_VERSION = 1

_LARGEST_SIZE = 2**31 - 1


@dataclass(frozen=True)
class LayerEntry:
    """A quantized layer in config.json. recipe: index into the list of recipes; shape: [N, K]."""

    recipe: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class ParsedConfig:
    """A `quantization_config` whose types, indices and version are right; recipes are still plain data."""

    lowbit_version: str
    recipes: tuple[Mapping[str, Any], ...]
    layers: Mapping[str, LayerEntry]

    def layers_with(
        self, make_recipe: Callable[[Mapping[str, Any]], Recipe]
    ) -> dict[str, tuple[Recipe, tuple[int, int]]]:
        """Recipe and shape of every layer; `make_recipe` raises BadRequest where it does not know a part."""
        recipes = []
        for index, data in enumerate(self.recipes):
            try:
                recipes.append(make_recipe(data))
            except BadRequest as error:
                raise BadRequest(f"recipes[{index}]: {error}") from error
        return {name: (recipes[entry.recipe], entry.shape) for name, entry in self.layers.items()}


def stored_fields(recipe: Recipe, shape: tuple[int, int]) -> dict[str, Field]:
    """The recipe's fields for a layer [N, K] under the names they are stored by."""
    fields = recipe.fields(shape)
    taken = {"weight", "bias"} & fields.keys()
    require(not taken, f"Recipe {recipe.name}: a part stores {taken}, names that the format gives to other tensors.")
    return {"weight" if name == "codes" else name: field for name, field in fields.items()}


def stored_layout(recipe: Recipe, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape, as stored, of every tensor of a layer [N, K], by name without the layer's prefix."""
    return {name: layout(field) for name, field in stored_fields(recipe, shape).items()}


def layout(field: Field) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape of a field as it is stored."""
    return (torch.uint8, (field.nbytes,)) if isinstance(field, Bits) else (field.dtype, field.shape)


def stored_tensors(layer: QuantizedLayer) -> dict[str, Tensor]:
    """The tensors to write for a layer, packed, by name without the layer's prefix.

    Raises LowbitError where a value would change by being stored: what was measured must be what is loaded.
    """
    values = layer.tensors()
    return {
        name: _stored(name, values["codes" if name == "weight" else name], field)
        for name, field in stored_fields(layer.recipe, layer.shape).items()
    }


def restored_layer(recipe: Recipe, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> QuantizedLayer:
    """The layer [N, K] of stored tensors; `stored_tensors` of it gives the same bytes again.

    tensors: by name without the layer's prefix; further names (a bias) are ignored. Raises BadRequest where a tensor
    is missing or has another type or shape than the recipe stores.
    """
    fields = stored_fields(recipe, shape)
    for name, field in fields.items():
        require(name in tensors, f"tensor {name} is missing.")
        check_layout(name, field, tensors[name].dtype, tuple(tensors[name].shape))
    values = {name: restored(tensors[name], field) for name, field in fields.items()}
    values["codes"] = values.pop("weight")
    return restore_layer(recipe, shape, values)


def restored(tensor: Tensor, field: Field) -> Tensor:
    """A field's values from its stored tensor."""
    return unpack(tensor, field) if isinstance(field, Bits) else tensor


def check_layout(name: str, field: Field, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise BadRequest where a stored tensor does not have the type and shape of its field."""
    expected = layout(field)
    require(
        (dtype, shape) == expected,
        f"tensor {name} is {dtype} {list(shape)}, but the recipe stores {expected[0]} {list(expected[1])}.",
    )


def quantization_config(
    layers: Mapping[str, tuple[Mapping[str, Any], tuple[int, int]]], lowbit_version: str
) -> dict[str, Any]:
    """What config.json says about layers, given their recipe (as plain data) and shape [N, K] by name."""
    recipes: list[Mapping[str, Any]] = []
    index: dict[str, int] = {}
    entries = {}
    for name, (recipe, shape) in layers.items():
        key = json.dumps(recipe, sort_keys=True)
        if key not in index:
            index[key] = len(recipes)
            recipes.append(recipe)
        entries[name] = {"recipe": index[key], "shape": list(shape)}
    return {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "lowbit_version": lowbit_version,
        "recipes": recipes,
        "layers": entries,
    }


def parse_quantization_config(config: Mapping[str, Any]) -> ParsedConfig:
    """Check the `quantization_config` of a config.json; raises BadRequest naming the entry that is wrong."""
    method = config.get("quant_method")
    require(method == QUANT_METHOD, f"quant_method is {method!r}, not {QUANT_METHOD!r}: not a lowbit checkpoint.")
    _check_version(config.get("format_version"), config.get("lowbit_version"))
    recipes, layers = config.get("recipes"), config.get("layers")
    if not isinstance(recipes, list) or not all(isinstance(recipe, dict) for recipe in recipes):
        raise BadRequest("recipes must be a list of objects.")
    if not isinstance(layers, dict):
        raise BadRequest("layers must be an object: layer name to recipe and shape.")
    entries = {name: _entry(name, data, len(recipes)) for name, data in layers.items()}
    return ParsedConfig(str(config.get("lowbit_version")), tuple(recipes), entries)


def _check_version(version: Any, writer: Any) -> None:
    if not _is_int(version) or version < 1:
        raise BadRequest(f"format_version is {version!r}: must be a whole number from 1 on.")
    require(isinstance(writer, str), f"lowbit_version is {writer!r}: must be a string.")
    require(
        version <= FORMAT_VERSION,
        f"The checkpoint has format version {version}, written by a newer lowbit ({writer}); this one reads up to "
        f"{FORMAT_VERSION}. Upgrade lowbit.",
    )


def _entry(name: str, data: Any, recipes: int) -> LayerEntry:
    if not isinstance(data, dict) or data.keys() != {"recipe", "shape"}:
        raise BadRequest(f"layers[{name!r}] must have a recipe and a shape, nothing else.")
    recipe, shape = data["recipe"], data["shape"]
    if not _is_int(recipe) or not 0 <= recipe < recipes:
        raise BadRequest(f"layers[{name!r}]: recipe {recipe!r} is not an index into the list of {recipes} recipes.")
    if not isinstance(shape, list) or len(shape) != 2 or not all(_is_int(s) and 1 <= s <= _LARGEST_SIZE for s in shape):
        raise BadRequest(f"layers[{name!r}]: shape must be [N, K], two sizes from 1 to {_LARGEST_SIZE}.")
    return LayerEntry(recipe, (shape[0], shape[1]))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stored(name: str, value: Tensor, field: Field) -> Tensor:
    # Integers are packed as one stream of rows, in whatever shape a part holds them.
    fits = value.numel() == math.prod(field.shape) if isinstance(field, Bits) else tuple(value.shape) == field.shape
    if not fits:
        raise LowbitError(f"{name}: {list(value.shape)} values, but the recipe stores {list(field.shape)}.")
    if isinstance(field, Bits):
        if value.is_floating_point() and bool(value.frac().any()):
            raise LowbitError(
                f"{name}: its values are not whole numbers, but the recipe stores {field.bits} bits each."
            )
        return pack(value, field)
    stored = value.to(field.dtype).contiguous()
    if not torch.equal(stored.to(value.dtype), value):
        raise LowbitError(f"{name}: its values are not finite or do not fit {field.dtype} exactly.")
    return stored
