"""The executable legality check of a whole checkpoint folder: docs/format.md, sentence by sentence.

Headers and config.json are checked first, against file sizes; then layer by layer, one tensor of codes in memory at
a time. A folder that passes can be decoded without further checks.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require
from lowbit.core.fields import Bits, Field
from lowbit.core.recipe import Recipe
from lowbit.formats.checkpoint import ParsedConfig, check_layout, parse_quantization_config, restored, stored_fields
from lowbit.formats.shards import Entry, Shards, read_json
from lowbit.packing.dense import is_legal

CONFIG_NAME = "config.json"
_DAMAGED = "The file is damaged: download or copy it again."


def check_checkpoint(folder: Path, make_recipe: Callable[[Mapping[str, Any]], Recipe]) -> None:
    """Raise BadRequest, naming the tensor or the entry, unless `folder` is a legal lowbit checkpoint."""
    folder = Path(folder)
    shards = Shards.open(folder)
    config = read_quantization_config(folder)
    with _naming(str(folder / CONFIG_NAME)):
        layers = config.layers_with(make_recipe)
    known = {f"{layer}.bias" for layer in layers}
    for layer, (recipe, shape) in layers.items():
        with _naming(f"{folder}: layer {layer!r}"):
            known |= {f"{layer}.{name}" for name in stored_fields(recipe, shape)}
            _check_layer(shards, layer, recipe, shape)
    for name in (name for name in shards.entries if name not in known):
        owner = _owner(name, layers)
        require(owner is None, f"{folder}: tensor {name!r} is not one that layer {owner!r} stores.")


def read_quantization_config(folder: Path) -> ParsedConfig:
    """The checked `quantization_config` of a folder's config.json; raises BadRequest where there is none."""
    path = Path(folder) / CONFIG_NAME
    config = read_json(path).get("quantization_config")
    if not isinstance(config, dict):
        raise BadRequest(f"{path} has no quantization_config: not a quantized checkpoint.")
    with _naming(f"{path}: quantization_config"):
        return parse_quantization_config(config)


def _check_layer(shards: Shards, layer: str, recipe: Recipe, shape: tuple[int, int]) -> None:
    fields = stored_fields(recipe, shape)
    for name, field in fields.items():
        entry = _entry(shards, f"{layer}.{name}")
        check_layout(name, field, entry.dtype, entry.shape)
    # After the layout: only a shape that the files bear out may cost time.
    recipe.check(shape)
    side = {}
    for name, field in fields.items():
        stored = shards.load(f"{layer}.{name}")
        _check_values(name, stored, field)
        if name != "weight":
            side[name] = restored(stored, field)
    recipe.transform.restore(side, shape)
    if recipe.side_car is not None:
        recipe.side_car.restore(side, shape)
    if f"{layer}.bias" in shards.entries:
        _check_bias(shards, f"{layer}.bias", shape)


def _entry(shards: Shards, name: str) -> Entry:
    require(name in shards.entries, f"tensor {name!r} is missing. Download or copy the folder again.")
    return shards.entries[name]


def _check_values(name: str, stored: Tensor, field: Field) -> None:
    if isinstance(field, Bits):
        require(is_legal(stored, field), f"tensor {name}: the spare bits that end its rows are not zero. {_DAMAGED}")
        return
    if stored.is_floating_point():
        _check_finite(name, stored)
    if name.endswith("scale"):
        require(bool((stored.float() > 0).all()), f"tensor {name} holds a scale that is not positive. {_DAMAGED}")


def _check_bias(shards: Shards, name: str, shape: tuple[int, int]) -> None:
    entry = shards.entries[name]
    require(
        entry.dtype.is_floating_point and entry.shape == shape[:1],
        f"tensor bias is {entry.dtype} {list(entry.shape)}, but must be floating point [{shape[0]}].",
    )
    _check_finite("bias", shards.load(name))


def _check_finite(name: str, values: Tensor) -> None:
    require(bool(torch.isfinite(values.float()).all()), f"tensor {name} holds NaN or Inf. {_DAMAGED}")


def _owner(name: str, layers: Mapping[str, Any]) -> str | None:
    """The quantized layer whose prefix a tensor's name carries, if any."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((prefix for prefix in prefixes if prefix in layers), None)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say where a bad request was found."""
    try:
        yield
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from error
