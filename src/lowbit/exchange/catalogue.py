"""The formats there are, and which of them reads a folder."""

from collections.abc import Mapping
from typing import Any

from lowbit.core.errors import BadRequest
from lowbit.core.layer import QuantizedLayer
from lowbit.exchange import gguf_blocks
from lowbit.exchange.awq import Awq
from lowbit.exchange.compressed_tensors import CompressedTensors
from lowbit.exchange.exl3 import Exl3
from lowbit.exchange.format import Format
from lowbit.exchange.gptq import Gptq, version_of

_FORMATS: tuple[Format[Any], ...] = (Gptq(1), Gptq(2), CompressedTensors(), Awq(), Exl3())
FORMATS = {format.name: format for format in _FORMATS}

EXPORTS = (*FORMATS, "gguf")
"""What lowbit writes."""


def objection(format: str, layer: QuantizedLayer) -> str | None:
    """Why one of EXPORTS cannot hold a layer exactly; None where it can."""
    try:
        if format == "gguf":
            gguf_blocks.stored(layer)
            return None
        return FORMATS[format].objection(FORMATS[format].seen(layer))
    except BadRequest as error:
        return str(error)


def formats_for(layer: QuantizedLayer) -> list[str]:
    """The names of those that hold a layer exactly."""
    return [format for format in EXPORTS if objection(format, layer) is None]


def format_of(config: Mapping[str, Any]) -> Format[Any]:
    """The format that a `quantization_config` names; raises BadRequest where lowbit does not read it."""
    method = config.get("quant_method")
    if method == Gptq.method:
        return version_of(config)
    for format in FORMATS.values():
        if format.method == method:
            return format
    methods = dict.fromkeys(format.method for format in FORMATS.values())
    raise BadRequest(f"quant_method is {method!r}; lowbit reads {', '.join(methods)}.")
