"""Folders that are whole or not there: written in a hidden folder inside their place, config.json moved last."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from lowbit.core.errors import require
from lowbit.formats.files import (
    flush_folder,
    write_bytes_atomically,
    write_json_atomically,
    write_tensors_atomically,
)
from lowbit.formats.shards import INDEX_NAME, SINGLE_NAME, read_json

_STAGING = ".partial"
_MOVING = "moving.json"
_SHARD_BYTES = 1 << 30
_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
_OWN = {
    "config.json",
    INDEX_NAME,
    "report.json",
    "training.json",
    "quantize_config.json",
    "quantization_config.json",
}


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder to write in; what it holds becomes `out` when the body ends, and vanishes when it raises.

    Raises BadRequest where `out` cannot be written to or holds anything but what a crash left of an earlier try.
    """
    require_writable(out)
    staging, existed = out / _STAGING, out.exists()
    left = {_STAGING, *_moved(staging)}
    found = [path.name for path in out.iterdir() if path.name not in left] if existed else []
    require(not found, f"{out} is not empty (it holds {', '.join(sorted(found)[:3])}). Give another folder.")
    _discard(out)
    staging.mkdir(parents=True)
    try:
        yield staging
        names = sorted(path.name for path in staging.iterdir())
        write_json_atomically(staging / _MOVING, {"names": names})
        move_files(staging, out, names)
    except BaseException:
        _discard(out)
        if not existed and not any(out.iterdir()):
            out.rmdir()
        raise
    shutil.rmtree(staging)


def move_files(staging: Path, out: Path, names: Iterable[str]) -> None:
    """Move files of a finished folder to `out`, config.json when the disk has all others there."""
    for name in _config_last(names):
        if name == "config.json":
            flush_folder(out)
        (staging / name).replace(out / name)
    flush_folder(out)


def require_writable(out: Path) -> None:
    """Raise BadRequest unless `out` is a folder, or one can be made there, and files can be written into it."""
    require(out.exists() or not out.is_symlink(), f"{out} is a link to nothing. Make what it points to, or remove it.")
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    require(there.is_dir(), f"{there} is a file. Give another folder.")
    require(os.access(there, os.W_OK | os.X_OK), f"{there} cannot be written to. Change its rights or give another.")


def _moved(staging: Path) -> list[str]:
    """The files that a try was moving into place when it ended, wherever they are."""
    path = staging / _MOVING
    return [Path(name).name for name in read_json(path)["names"]] if path.exists() else []


def _discard(out: Path) -> None:
    """Remove what a try has left."""
    for name in reversed(_config_last(_moved(out / _STAGING))):
        (out / name).unlink(missing_ok=True)
    if (out / _STAGING).exists():
        shutil.rmtree(out / _STAGING)


def _config_last(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name == "config.json", name))


class ShardWriter:
    """Tensors into safetensors shards of bounded size, in the order in which they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = 0
        self._shards: list[list[str]] = []
        self.nbytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write some tensors, all into one shard."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._waiting_bytes + size > _SHARD_BYTES:
            self._flush()
        self._waiting |= tensors
        self._waiting_bytes += size

    def close(self) -> None:
        """Write what is left, name the shards and write their index where there are several."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(0).replace(self._folder / SINGLE_NAME)
            return
        index: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._part(number).replace(self._folder / name)
            index |= dict.fromkeys(names, name)
        write_json_atomically(self._folder / INDEX_NAME, {"metadata": {"total_size": self.nbytes}, "weight_map": index})

    def _flush(self) -> None:
        if not self._waiting:
            return
        write_tensors_atomically(self._part(len(self._shards)), self._waiting, {"format": "pt"})
        self._shards.append(sorted(self._waiting))
        self.nbytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings and licence: what belongs to a model and not to how it is stored."""
    for path in sorted({path for pattern in _COMPANIONS for path in source.glob(pattern)}):
        if path.name not in _OWN:
            write_bytes_atomically(folder / path.name, path.read_bytes())
