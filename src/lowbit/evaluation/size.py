"""What a checkpoint weighs, read from its files' headers: no weight is loaded."""

import json
import math
from pathlib import Path

from lowbit.core.fields import bits_per_weight
from lowbit.evaluation.records import Size
from lowbit.formats.checkpoint import QUANT_METHOD, parse_quantization_config, stored_fields
from lowbit.formats.shards import Shards
from lowbit.recipes.serial import from_dict


def checkpoint_size(folder: Path) -> Size | None:
    """Size of a plain or a lowbit checkpoint; None where another tool packed it in a way only that tool counts.

    Raises BadRequest for shards or a quantization_config that are not what they claim to be.
    """
    shards = Shards.open(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if config is not None and config.get("quant_method") != QUANT_METHOD:
        return None
    layers = {} if config is None else parse_quantization_config(config).layers_with(from_dict)
    fields = {
        f"{name}.{field}": value
        for name, (recipe, shape) in layers.items()
        for field, value in stored_fields(recipe, shape).items()
    }
    weights = sum(math.prod(shape) for _, shape in layers.values())
    others = sum(math.prod(entry.shape) for name, entry in shards.entries.items() if name not in fields)
    size = sum(file.stat().st_size for file in {entry.file for entry in shards.entries.values()})
    return Size(
        bytes=size,
        parameters=weights + others,
        bits_per_parameter=8 * size / (weights + others),
        bits_per_weight=bits_per_weight(fields, (1, weights)) if layers else None,
    )
