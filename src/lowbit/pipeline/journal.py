"""The journal of a run: what is finished, in a file that survives kill -9 at any instant.

One line a finished step, its checksum and JSON, appended and synced only after the step's own file is complete under
its final name. The first line holds the digests of everything the result depends on; a run is resumed only where they
agree. A line that was cut off by a crash or damaged later is dropped: its step is simply done again. Steps are found by
(kind, name).
"""

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.core.errors import BadRequest
from lowbit.formats.files import append_durably

_CHECKSUM = 9  # bytes of a line before its JSON
_WORDS = {
    "model": "model",
    "recipe": "recipe",
    "calibration": "calibration (text, windows or --seed)",
    "lowbit": "lowbit version",
    "device": "device",
}
_READABLE = {"lowbit", "device"}


@dataclass(eq=False)
class Journal:
    """entries: (kind, name) -> the line's data, for every finished step."""

    path: Path
    entries: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def start(cls, path: Path, digests: Mapping[str, str]) -> "Journal":
        """A new journal whose first line is `digests`."""
        journal = cls(path)
        journal.record("run", "", dict(digests))
        return journal

    @classmethod
    def resume(cls, path: Path, digests: Mapping[str, str]) -> "Journal":
        """The journal at `path`, started where not even its first line was written whole; raises BadRequest where that
        line was damaged, or naming what differs from the run that started it."""
        *lines, cut = path.read_bytes().split(b"\n")
        if cut:
            _truncate(path, sum(len(line) + 1 for line in lines))
        if not lines:
            return cls.start(path, digests)
        journal = cls(path)
        for line in filter(_is_sound, lines):
            data = json.loads(line[_CHECKSUM:])
            journal.entries[data.pop("kind"), data.pop("name")] = data
        started = journal.entries.get(("run", ""))
        if started is None:
            raise BadRequest(f"{path}: its first line, what the run is of, is damaged. Start again in an empty folder.")
        for key, digest in digests.items():
            if started.get(key) != digest:
                told = f" ({started.get(key)}, not {digest})" if key in _READABLE else ""
                raise BadRequest(
                    f"{path.parent.parent} was started with another {_WORDS[key]}{told}. "
                    "Resume with the same one, or start in an empty folder."
                )
        return journal

    def record(self, kind: str, name: str, data: Mapping[str, Any]) -> None:
        """Append one finished step and wait until the disk has it."""
        text = json.dumps({"kind": kind, "name": name, **data}, sort_keys=True).encode()
        append_durably(self.path, _checksum(text) + text + b"\n")
        self.entries[kind, name] = dict(data)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return self.entries.get((kind, name))


def _checksum(text: bytes) -> bytes:
    return b"%08x " % zlib.crc32(text)


def _is_sound(line: bytes) -> bool:
    return line[:_CHECKSUM] == _checksum(line[_CHECKSUM:])


def _truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raises BadRequest where another run holds it. A killed run's lock is free."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadRequest(
                f"{folder.parent}: another lowbit run is writing here. Wait for it, or use another folder."
            ) from error
        if not os.fstat(file.fileno()).st_nlink:
            raise BadRequest(f"{folder.parent}: another lowbit run has just ended here. Look at what it wrote.")
        yield
