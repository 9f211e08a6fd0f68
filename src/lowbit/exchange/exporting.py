"""From a lowbit folder to another tool's: every code goes over as it is, or nothing does unless asked for.

Layers are read, checked and rewritten one at a time; what is not quantized is copied byte for byte.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.core.errors import BadRequest, require
from lowbit.core.layer import QuantizedLayer
from lowbit.core.recipe import Recipe
from lowbit.exchange.catalogue import formats_for, objection
from lowbit.exchange.format import Format
from lowbit.exchange.requantize import Requantize
from lowbit.formats.checkpoint import restored_layer, stored_fields
from lowbit.formats.files import write_json_atomically
from lowbit.formats.folder import ShardWriter, copy_companions, staged
from lowbit.formats.legality import CONFIG_NAME, check_checkpoint, read_quantization_config
from lowbit.formats.shards import Shards, read_json
from lowbit.recipes import from_dict

_TRANSPOSED = ("gpt2", "openai-gpt")
"""Architectures whose layers are no `torch.nn.Linear`, which other tools store in ways of their own."""


def export_folder(folder: Path, out: Path, format: Format[Any], bits: int | None = None) -> dict[str, Any]:
    """Write the lowbit checkpoint `folder` to `out` in `format`, with the same codes.

    bits: layers that do not fit are rounded to so many instead of being refused (`exchange.requantize`).

    Returns format, layers (how many), requantized (how many of them), bytes of all tensors, bits_per_weight of the
    quantized ones. Raises BadRequest, leaving nothing behind, where `folder` is not legal, `out` is not empty, or the
    format cannot hold a layer.
    """
    config, layers, shards = open_checkpoint(folder)
    again = None if bits is None else Requantize.into(format.name, bits, [shape for _, shape in layers.values()])
    grids: dict[str, Any] = {}
    stored_bytes = weights = requantized = 0
    with staged(out) as staging:
        writer = ShardWriter(staging)
        taken = set()
        for name, (recipe, shape) in layers.items():
            taken |= {f"{name}.{field}" for field in stored_fields(recipe, shape)}
            layer, exact = layer_for(format.name, format.holds, shards, name, (recipe, shape), again)
            requantized += not exact
            seen = format.seen(layer)
            tensors = format.tensors(seen)
            writer.add({f"{name}.{field}": tensor for field, tensor in tensors.items()})
            grids[name] = seen.grid
            stored_bytes += sum(tensor.nbytes for tensor in tensors.values())
            weights += shape[0] * shape[1]
        rest = [name for name in shards.entries if name not in taken]
        for name in rest:
            writer.add({name: shards.load(name)})
        writer.close()
        copy_companions(folder, staging)
        settings = format.config(grids, _matrices(shards, rest))
        write_json_atomically(staging / CONFIG_NAME, config | {"quantization_config": settings})
        if format.settings_file is not None:
            write_json_atomically(staging / format.settings_file, settings)
    return {
        "format": format.name,
        "layers": len(layers),
        "requantized": requantized,
        "bytes": writer.nbytes,
        "bits_per_weight": 8 * stored_bytes / weights,
    }


Layers = Mapping[str, tuple[Recipe, tuple[int, int]]]


def open_checkpoint(folder: Path) -> tuple[dict[str, Any], Layers, Shards]:
    """config.json without what lowbit added, layers and shards of a lowbit checkpoint; BadRequest where not legal."""
    check_checkpoint(folder, from_dict)
    layers = read_quantization_config(folder).layers_with(from_dict)
    config = read_json(folder / CONFIG_NAME)
    kind = config.get("model_type")
    require(bool(layers), f"{folder} has no quantized layers: there is nothing to export.")
    require(kind not in _TRANSPOSED, f"{folder} is a {kind}, whose layers are not nn.Linear: no export knows how to.")
    experts = next((name for name in layers if ".experts." in name), None)
    require(
        experts is None, f"{folder} has quantized experts ({experts}), which lowbit does not know how to export yet."
    )
    return (
        {key: value for key, value in config.items() if key not in ("auto_map", "quantization_config")},
        layers,
        Shards.open(folder),
    )


def layer_for(
    format: str, holds: str, shards: Shards, name: str, stored: tuple[Recipe, tuple[int, int]], again: Requantize | None
) -> tuple[QuantizedLayer, bool]:
    """A layer of a lowbit checkpoint that `format`, which holds what `holds` says, can store; and whether it is exact.

    Raises BadRequest where it cannot, unless layers may be rounded `again`.
    """
    recipe, shape = stored
    tensors = {field: shards.load(f"{name}.{field}") for field in stored_fields(recipe, shape)}
    layer = restored_layer(recipe, shape, tensors)
    found = objection(format, layer)
    if found is None:
        return layer, True
    if again is not None:
        return _rounded(format, name, layer, again), False
    others = formats_for(layer)
    raise BadRequest(
        f"{format} cannot hold layer {name!r}: {found}. It holds {holds}. "
        + (f"This layer fits {', '.join(others)}; " if others else "No other tool's format fits it; ")
        + "`--requantize BITS` rounds what does not fit a second time and says what that costs."
    )


def _rounded(format: str, name: str, layer: QuantizedLayer, again: Requantize) -> QuantizedLayer:
    """The layer rounded again; raises BadRequest naming it where that does not fit, either."""
    try:
        rounded = again.layer(layer)
        found = objection(format, rounded)
    except BadRequest as error:
        found = str(error)
    require(found is None, f"{format} cannot hold layer {name!r}, not even rounded again: {found}")
    return rounded


def _matrices(shards: Shards, names: list[str]) -> list[str]:
    """Modules inside numbered blocks whose matrices stay as they are."""
    return [
        name.removesuffix(".weight")
        for name in names
        if name.endswith(".weight") and len(shards.entries[name].shape) == 2 and re.search(r"\.\d+\.", name)
    ]
