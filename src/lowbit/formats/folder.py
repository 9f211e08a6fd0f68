"""Folders that are whole or not there: written in a hidden folder inside their place, config.json moved last."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from lowbit.core.errors import require
from lowbit.formats.files import write_bytes_atomically, write_json_atomically, write_tensors_atomically
from lowbit.formats.shards import INDEX_NAME, SINGLE_NAME

_STAGING = ".partial"
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

    Raises BadRequest where `out` holds anything but what a crash left of an earlier try.
    """
    staging = out / _STAGING
    require(not out.exists() or out.is_dir(), f"{out} is a file. Give another folder.")
    found = [path.name for path in out.iterdir() if path != staging] if out.exists() else []
    require(not found, f"{out} is not empty (it holds {', '.join(sorted(found)[:3])}). Give another folder.")
    if staging.exists():
        shutil.rmtree(staging)
    existed = out.exists()
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in sorted(staging.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(staging)
        if not existed and not any(out.iterdir()):
            out.rmdir()


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
