"""Safetensors folders, read without trusting them.

A file is 8 bytes of little-endian header length, that much JSON, then the tensors' bytes. Everything the header says is
checked against the size of the file, which cannot lie, before a single byte is allocated for a tensor:

    tensors in order of their start leave no hole, do not overlap, and end where the file ends;
    product(shape) * bytes per element = end - start;    names are unique in a file and over the shards.

Opening costs one small read per shard; `load` reads exactly one tensor into memory of its own, so a file that is cut
short or changed later gives an error, not a crash or a mixture. Format: github.com/huggingface/safetensors.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, LowbitError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
LARGEST_JSON = 100_000_000
"""Bytes of JSON (a header, an index, a config) above which a file is not believed; safetensors' own limit."""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}

_AGAIN = "Download or copy it again."
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MOST_DIMENSIONS = 64
_LARGEST_COUNT = 2**63


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `nbytes` bytes of `file` from byte `start` on. written: when the file was, in ns."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int
    written: int


@dataclass(frozen=True)
class Shards:
    """The tensors of a folder. entries: by tensor name; metadata: each file's own, by file name."""

    folder: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, Mapping[str, str]]

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Read and check all headers; raises BadRequest naming the file, what is wrong with it and the way out."""
        files, index = _files(Path(folder))
        entries: dict[str, Entry] = {}
        metadata = {}
        for file in files:
            found, metadata[file.name] = read_header(file)
            twice = sorted(entries.keys() & found.keys())
            if twice:
                raise BadRequest(f"{file} and {entries[twice[0]].file.name} both hold {twice[0]!r}. {_AGAIN}")
            entries |= found
        if index:
            _check_index(Path(folder) / INDEX_NAME, index, entries)
        return cls(Path(folder), entries, metadata)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self.entries.values())

    def load(self, name: str) -> Tensor:
        """A fresh copy of one tensor; raises BadRequest where there is none or its file was changed since `open`."""
        if name not in self.entries:
            raise BadRequest(f"{self.folder} holds no tensor {name!r}.")
        return _read(name, self.entries[name])

    def load_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop - 1 (which there must be) of one tensor with axes; raises as `load` does."""
        if name not in self.entries:
            raise BadRequest(f"{self.folder} holds no tensor {name!r}.")
        whole = self.entries[name]
        shape = (stop - start, *whole.shape[1:])
        row = math.prod(shape[1:]) * whole.dtype.itemsize
        return _read(name, replace(whole, shape=shape, start=whole.start + start * row, nbytes=shape[0] * row))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file; raises BadRequest as `Shards.open` does."""
    return {name: _read(name, entry) for name, entry in read_header(path)[0].items()}


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The checked entries and the metadata of one safetensors file; raises BadRequest where anything is wrong."""
    with _opened(path) as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_JSON):
            raise BadRequest(
                f"{path} has {size} bytes but claims a header of {length}: cut short, or not safetensors. {_AGAIN}"
            )
        text = file.read(length)
    header = _object(text, f"{path}: its header")
    metadata = header.pop("__metadata__", {})
    if not _is_text_map(metadata):
        raise BadRequest(f"{path}: __metadata__ must map strings to strings. {_AGAIN}")
    entries = {name: _entry(path, name, data, 8 + length, status.st_mtime_ns) for name, data in header.items()}
    _check_layout(path, entries, 8 + length, size)
    return entries, metadata


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most LARGEST_JSON bytes; raises BadRequest where it is anything else."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_JSON:
            raise BadRequest(f"{path} has {size} bytes, more than any such file needs ({LARGEST_JSON}). {_AGAIN}")
        text = file.read(size)
    return _object(text, str(path))


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The shards of a folder, and the index (tensor name to file name; empty for a single file)."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise BadRequest(f"{folder} {what}. Give the folder that holds config.json and the safetensors files.")
    present = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    if SINGLE_NAME in present:
        return [present[SINGLE_NAME]], {}
    if INDEX_NAME in present:
        index = _index(present[INDEX_NAME])
        return [_shard(folder, name, present) for name in sorted(set(index.values()))], index
    single = [path for name, path in present.items() if name.endswith(".safetensors")]
    if len(single) == 1:
        return single, {}
    raise BadRequest(_nothing_to_read(folder, present, len(single)))


def _shard(folder: Path, name: str, present: Mapping[str, Path]) -> Path:
    if name in present:
        return present[name]
    if {"/", "\\"} & set(name) or name in ("", ".", ".."):
        raise BadRequest(f"{folder / INDEX_NAME} names the shard {name!r}: shards lie in the folder itself. {_AGAIN}")
    raise BadRequest(f"{folder} lacks the shard {name!r} that {INDEX_NAME} names. Download it again.")


def _index(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not weight_map or not _is_text_map(weight_map):
        raise BadRequest(f"{path}: weight_map must map tensor names to file names. {_AGAIN}")
    return weight_map


def _check_index(path: Path, index: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
    """The index and the headers tell the same story."""
    for name, file_name in index.items():
        if name not in entries or entries[name].file.name != file_name:
            raise BadRequest(f"{path} says that {name!r} is in {file_name}, which does not hold it. {_AGAIN}")
    unlisted = sorted(entries.keys() - index.keys())
    if unlisted:
        raise BadRequest(
            f"{path} does not list {unlisted[0]!r}, which {entries[unlisted[0]].file.name} holds. {_AGAIN}"
        )


def _nothing_to_read(folder: Path, present: Mapping[str, Path], shards: int) -> str:
    if shards:
        return f"{folder} holds {shards} safetensors files but no {INDEX_NAME}. Download the index too."
    if any(name.endswith(_PICKLES) for name in present):
        return (
            f"{folder} holds only pickled weights, and reading a pickle can run any code. Convert it where you trust "
            "it, with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
        )
    return f"{folder} holds no safetensors files; it holds {', '.join(list(present)[:8]) or 'nothing'}."


def _read(name: str, entry: Entry) -> Tensor:
    data = torch.empty(entry.nbytes, dtype=torch.uint8)
    with _opened(entry.file) as file:
        try:
            file.seek(entry.start)
            complete = not entry.nbytes or file.readinto(data.numpy().data) == entry.nbytes
            changed = entry.file.stat().st_mtime_ns != entry.written
        except OSError as error:
            raise LowbitError(
                f"{entry.file}: tensor {name!r} cannot be read: {error.strerror}. Copy the file to a sound disk."
            ) from error
        if not complete:
            raise BadRequest(f"{entry.file} ends inside tensor {name!r}: it was cut short after it was opened.")
    if changed:
        raise BadRequest(f"{entry.file} was changed while it was being read. Give a copy that stays as it is.")
    return data.view(entry.dtype).view(entry.shape)


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise BadRequest(f"{path} cannot be opened: {error.strerror}.") from error


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{what} is not valid JSON: {error}. {_AGAIN}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"{what} is JSON, but not an object. {_AGAIN}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} appears twice")
    return result


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_COUNT


def _entry(path: Path, name: str, data: Any, data_start: int, written: int) -> Entry:
    """One tensor of a header, its own numbers checked against each other."""
    what = f"{path}: tensor {name!r}"
    if not isinstance(data, dict) or data.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadRequest(f"{what} must be described by dtype, shape and data_offsets. {_AGAIN}")
    dtype, shape, offsets = data["dtype"], data["shape"], data["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadRequest(f"{what} has the type {dtype!r}, which lowbit cannot read. It reads {', '.join(DTYPES)}.")
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not all(map(_is_count, shape)):
        raise BadRequest(f"{what} has a shape that is not a list of sizes. {_AGAIN}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise BadRequest(f"{what} has data_offsets that are not [start, end]. {_AGAIN}")
    # Sizes beside a zero are multiplied too: torch computes strides from them.
    if math.prod(size or 1 for size in shape) >= _LARGEST_COUNT:
        raise BadRequest(f"{what} has the impossible shape {shape}. {_AGAIN}")
    start, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - start != nbytes:
        raise BadRequest(f"{what} is {dtype} {shape}, {nbytes} bytes, but lies at [{start}, {end}]. {_AGAIN}")
    return Entry(path, DTYPES[dtype], tuple(shape), data_start + start, nbytes, written)


def _check_layout(path: Path, entries: Mapping[str, Entry], data_start: int, size: int) -> None:
    """Tensors lie one behind the other from the header's end to the file's."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != position:
            how = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            raise BadRequest(f"{path}: tensor {name!r} {how} (byte {entry.start}, expected {position}). {_AGAIN}")
        position += entry.nbytes
    if position != size:
        raise BadRequest(
            f"{path} has {size} bytes where its header describes {position}: cut short or extended. {_AGAIN}"
        )
