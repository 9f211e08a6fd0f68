"""Exchange: quantized models from and to the formats of other tools, codes as they are."""

from pathlib import Path
from typing import Any

from lowbit.core.errors import BadRequest
from lowbit.exchange.catalogue import EXPORTS as EXPORTS
from lowbit.exchange.catalogue import FORMATS as FORMATS
from lowbit.exchange.exporting import export_folder
from lowbit.exchange.gguf import export_gguf
from lowbit.exchange.gguf_import import gguf_file as gguf_file
from lowbit.exchange.gguf_import import import_gguf as import_gguf
from lowbit.exchange.importing import import_folder as import_folder


def export(folder: Path, out: Path, format: str, bits: int | None = None) -> dict[str, Any]:
    """`export_folder` or `export_gguf`, by the name of the format; raises BadRequest where there is none."""
    if format not in EXPORTS:
        raise BadRequest(f"No format named {format!r}. lowbit writes {', '.join(EXPORTS)}.")
    return export_gguf(folder, out, bits) if format == "gguf" else export_folder(folder, out, FORMATS[format], bits)
