"""The lengths that a GGUF file states, held to its size before the package gguf reads it.

The package believes them: a list of 2^60 numbers keeps it busy for ever.

    GGUF, version u32, tensors u64, settings u64
    settings: name, type u32, value        tensors: name, rank u32, rank sizes u64, type u32, offset u64

A string is a length u64 and so many bytes, a list a type u32, a length u64 and so many values, all little-endian.
Source: the GGUF specification, versions 2 and 3.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from lowbit.core.errors import require

_STRING, _LIST = 8, 9
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_VERSIONS = (2, 3)
_HIGHEST_RANK = 4


def check_lengths(path: Path) -> None:
    """Raise BadRequest where the file is not GGUF or says it holds more than it does."""
    require(path.stat().st_size >= 24, "it is no GGUF file.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        require(data[:4] == b"GGUF", "it is no GGUF file.")
        at = _Place(data, 4)
        version = at.number("<I")
        require(version in _VERSIONS, f"it is GGUF of version {version}; lowbit reads {_VERSIONS}, little-endian.")
        tensors, settings = at.number("<Q"), at.number("<Q")
        for _ in range(settings):
            at.skip(at.number("<Q"))
            at.skip_value(at.number("<I"))
        for _ in range(tensors):
            at.skip(at.number("<Q"))
            rank = at.number("<I")
            require(rank <= _HIGHEST_RANK, f"a tensor has {rank} dimensions.")
            at.skip(8 * rank + 12)


@dataclass
class _Place:
    """A place in the file that moves on as it is read."""

    data: mmap.mmap
    at: int

    def number(self, kind: str) -> int:
        start = self.at
        self.skip(struct.calcsize(kind))
        return int(struct.unpack_from(kind, self.data, start)[0])

    def skip(self, count: int) -> None:
        self.at += count
        require(self.at <= len(self.data), "it is cut short, or says that it holds more than it does.")

    def skip_value(self, kind: int) -> None:
        if kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        elif kind == _STRING:
            self.skip(self.number("<Q"))
        else:
            require(kind == _LIST, f"a setting is of type {kind}, which is none.")
            inner, count = self.number("<I"), self.number("<Q")
            require(inner == _STRING or inner in _WIDTHS, f"a list is of values of type {inner}.")
            if inner in _WIDTHS:
                self.skip(count * _WIDTHS[inner])
            else:
                for _ in range(count):
                    self.skip(self.number("<Q"))
