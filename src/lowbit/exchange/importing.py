"""From another tool's folder to a lowbit one: every code comes over as it is.

A layer is found by its key tensor (`PREFIX.qweight`), read by its format, which believes nothing that the tensors do
not bear out, and stored by lowbit's own writer; what is not quantized is copied byte for byte.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.core.errors import BadRequest, require
from lowbit.core.fields import bits_per_weight
from lowbit.core.recipe import to_dict
from lowbit.exchange.catalogue import format_of
from lowbit.exchange.format import Format
from lowbit.formats.checkpoint import quantization_config, stored_tensors
from lowbit.formats.files import write_json_atomically, write_text_atomically
from lowbit.formats.folder import ShardWriter, copy_companions, staged
from lowbit.formats.legality import CONFIG_NAME
from lowbit.formats.shards import Shards, read_json
from lowbit.integrations.transformers import STUB_NAME, remote_code_stub
from lowbit.version import VERSION


def import_folder(folder: Path, out: Path) -> dict[str, Any]:
    """Write the GPTQ, AWQ, compressed-tensors or EXL3 checkpoint `folder` to `out` as a lowbit one, same codes.

    Returns format, layers (how many), bytes of all tensors, bits_per_weight of the quantized ones and
    source_bits_per_weight, what `folder` itself stores for them. Raises BadRequest,
    leaving nothing behind, where `folder` is not what it claims to be or `out` is not empty.
    """
    config = read_json(folder / CONFIG_NAME)
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        raise BadRequest(f"{folder / CONFIG_NAME} has no quantization_config: there is nothing to import.")
    try:
        format = format_of(settings)
    except BadRequest as error:
        raise BadRequest(f"{folder / CONFIG_NAME}: {error}") from error
    _check_one_story(folder, settings, format)
    shards = Shards.open(folder)
    layers = _layers(shards, format)
    require(
        bool(layers), f"{folder} holds no tensor named {format.key}, although its config.json says {format.method}."
    )
    described, bits = {}, 0.0
    with staged(out) as staging:
        writer = ShardWriter(staging)
        for name, fields in layers.items():
            try:
                seen = format.read(settings, {field: shards.load(f"{name}.{field}") for field in fields})
                layer = format.layer(seen, f"{format.name}_import")
            except BadRequest as error:
                raise BadRequest(f"{folder}: layer {name!r}: {error}") from error
            writer.add({f"{name}.{field}": tensor for field, tensor in stored_tensors(layer).items()})
            described[name] = (to_dict(layer.recipe), layer.shape)
            bits += bits_per_weight(layer.recipe.fields(layer.shape), layer.shape) * math.prod(layer.shape)
        taken = {f"{name}.{field}" for name, fields in layers.items() for field in fields}
        for name in (name for name in shards.entries if name not in taken):
            writer.add({name: shards.load(name)})
        writer.close()
        copy_companions(folder, staging)
        text, auto_map = remote_code_stub(_architecture(config, folder))
        write_text_atomically(staging / f"{STUB_NAME}.py", text)
        added = {"auto_map": auto_map, "quantization_config": quantization_config(described, VERSION)}
        write_json_atomically(staging / CONFIG_NAME, config | added)
    weights = sum(n * k for _, (n, k) in described.values())
    there = sum(shards.entries[f"{name}.{field}"].nbytes for name, fields in layers.items() for field in fields)
    return {
        "format": format.name,
        "layers": len(layers),
        "bytes": writer.nbytes,
        "bits_per_weight": bits / weights,
        "source_bits_per_weight": 8 * there / weights,
    }


def _check_one_story(folder: Path, settings: Mapping[str, Any], format: Format[Any]) -> None:
    """Raise BadRequest where the format's own file of settings and config.json name different versions or bits."""
    path = folder / (format.settings_file or CONFIG_NAME)
    if format.settings_file is None or not path.is_file():
        return
    beside = read_json(path)
    for key in ("quant_method", "checkpoint_format", "bits"):
        require(
            key not in settings or key not in beside or settings[key] == beside[key],
            f"{folder}: {CONFIG_NAME} says {key} {settings.get(key)!r}, {path.name} says {beside.get(key)!r}: files of "
            "different versions are mixed. Download the folder again.",
        )


def _layers(shards: Shards, format: Format[Any]) -> dict[str, list[str]]:
    """The quantized layers, each with its fields; raises BadRequest for fields without the key."""
    layers: dict[str, list[str]] = {}
    for name in shards.entries:
        prefix, _, field = name.rpartition(".")
        if field in format.fields:
            layers.setdefault(prefix, []).append(field)
    for name in shards.entries:
        prefix, _, field = name.rpartition(".")
        require(
            prefix not in layers or field in format.fields | {"bias"},
            f"{shards.folder}: layer {prefix!r} has {field}, which is none of {format.method}'s.",
        )
    for name, fields in layers.items():
        require(
            format.key in fields,
            f"{shards.folder}: layer {name!r} has {', '.join(sorted(fields))} but no {format.key}. "
            "Download or copy it again.",
        )
    return layers


def _architecture(config: dict[str, Any], folder: Path) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str) or not names[0].isidentifier():
        raise BadRequest(f"{folder / CONFIG_NAME}: architectures is {names!r}, but must name one class.")
    return names[0]
