"""Files that are either whole or absent, and the same bytes for the same contents.

A file is written under a temporary name in its own folder, flushed to the disk, renamed, and the rename is flushed:
a crash at any instant leaves the old file or the new one. The temporary name is fixed, so that a run that is repeated
after a crash overwrites what the crash left. Lines are appended to a file that only grows and synced, so that a crash
cuts off at most the last one. Every byte goes through `_put`.

Safetensors files are written here because the library's writer orders metadata at random (a hash map); ours writes
the metadata by name, then the tensors, widest type first, then by name, so that every tensor is aligned.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import LowbitError
from lowbit.formats.shards import DTYPES

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing it as a whole.

    Raises OSError, and LowbitError where the disk is full; `path` is then as it was.
    """
    with _replacing(path) as file:
        _put(file, data)


def write_text_atomically(path: Path, text: str) -> None:
    """Write text as `write_bytes_atomically` does, in UTF-8; bytes of a path's name that are none are written out."""
    write_bytes_atomically(path, text.encode(errors="backslashreplace"))


def write_json_atomically(path: Path, obj: Any) -> None:
    """Write JSON, keys in the order given, as `write_text_atomically` does."""
    write_text_atomically(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def write_tensors_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write a safetensors file as `write_bytes_atomically` does; returns its sha256 in hexadecimal.

    tensors: on any device, of any shape, of the types in `shards.DTYPES`.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header = _header(order, tensors, metadata)
    digest = hashlib.sha256(header)
    with _replacing(path) as file:
        _put(file, header)
        for name in order:
            data = _bytes(tensors[name])
            digest.update(data)
            _put(file, data)
    return digest.hexdigest()


def append_durably(path: Path, data: bytes) -> None:
    """Append `data` to a file, made where there is none, and wait until the disk has it; errors as above, but what
    was written before the error stays."""
    with minding_space(path), path.open("ab", buffering=0) as file:
        _put(file, data)
        os.fsync(file.fileno())


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[RawIOBase]:
    """A file open for writing that becomes `path` when the body ends, and vanishes when it raises."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with minding_space(path), temporary.open("wb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def _put(file: RawIOBase, data: bytes | memoryview) -> None:
    """Write all of `data`: an unbuffered file may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def minding_space(path: Path) -> Iterator[None]:
    """Tell a full disk from other failures."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        raise LowbitError(
            f"{path} cannot be written: the disk (or your quota) is full, {free / 1e6:.1f} MB are free "
            f"({error.strerror}). Nothing finished is lost. Free some space and repeat the command, with --resume if "
            "it was `lowbit quantize`."
        ) from error


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names of a folder's files: those written, moved and removed."""
    if os.name == "nt":  # Windows cannot open folders and flushes renames by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _header(order: list[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in order:
        end = position + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
