"""What a checkpoint weighs, read from its files' headers: no weight is loaded."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.core.fields import Field, bits_per_weight
from lowbit.core.recipe import Recipe
from lowbit.evaluation.records import Size
from lowbit.formats.checkpoint import QUANT_METHOD, parse_quantization_config, stored_fields
from lowbit.formats.shards import Shards
from lowbit.recipes.serial import from_dict


def checkpoint_size(folder: Path) -> Size | None:
    """Size of a plain or a lowbit checkpoint; None where another tool packed it in a way only that tool counts.

    Raises BadRequest for shards or a quantization_config that are not what they claim to be.
    """
    shards, layers = Shards.open(folder), _layers(folder)
    if layers is None:
        return None
    fields = {
        f"{name}.{field}": value
        for name, (recipe, shape) in layers.items()
        for field, value in stored_fields(recipe, shape).items()
    }
    weights = sum(math.prod(shape) for _, shape in layers.values())
    others = sum(math.prod(entry.shape) for name, entry in shards.entries.items() if name not in fields)
    size = weight_bytes(folder)
    return Size(
        bytes=size,
        parameters=weights + others,
        bits_per_parameter=8 * size / (weights + others),
        bits_per_weight=bits_per_weight(fields, (1, weights)) if layers else None,
    )


def weight_bytes(folder: Path) -> int:
    """Of the files that hold a folder's tensors."""
    return sum(file.stat().st_size for file in {entry.file for entry in Shards.open(folder).entries.values()})


def byte_budget(folder: Path) -> list[dict[str, Any]]:
    """Where the bytes of a lowbit checkpoint are, the largest first: part, field and bytes of each kind of tensor.

    part: "codes"; "code" for what turns them into values; "transform"; "side-car"; "not quantized", whose fields are
    the tensors' names without the number of the block.
    """
    layers = _layers(folder) or {}
    found: Counter[tuple[str, str]] = Counter()
    for recipe, shape in layers.values():
        for part, fields in _by_part(recipe, shape).items():
            for name, field in fields.items():
                found["codes" if name == "codes" else part, name] += field.nbytes
    quantized = {
        f"{name}.{field}" for name, (recipe, shape) in layers.items() for field in stored_fields(recipe, shape)
    }
    for name, entry in Shards.open(folder).entries.items():
        if name not in quantized:
            found["not quantized", re.sub(r"(^|\.)\d+(?=\.)", r"\1*", name)] += entry.nbytes
    return [{"part": part, "field": field, "bytes": count} for (part, field), count in found.most_common()]


def _by_part(recipe: Recipe, shape: tuple[int, int]) -> dict[str, Mapping[str, Field]]:
    side_car = {} if recipe.side_car is None else recipe.side_car.fields(shape)
    code, transform = recipe.code_at(shape).fields(shape), recipe.transform.fields(shape)
    return {"code": code, "transform": transform, "side-car": side_car}


def _layers(folder: Path) -> dict[str, tuple[Recipe, tuple[int, int]]] | None:
    """Recipe and shape of every quantized layer; None where another tool packed the folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if config is None:
        return {}
    if config.get("quant_method") != QUANT_METHOD:
        return None
    return parse_quantization_config(config).layers_with(from_dict)
