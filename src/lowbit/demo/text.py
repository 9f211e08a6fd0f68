"""The text every machine has: the source of Python's own standard library.

lowbit must run offline on a fresh machine, so its default calibration and evaluation text is what came
with the interpreter. Files are split by a hash of their name, so that a module and its test fall on the
same side and the split never depends on the machine or the Python version:

    held-out     one name in sixteen: never used for training or calibration
    calibration  the rest

Left out everywhere: installed packages, generated tables (`encodings`, `pydoc_data`) and byte-heavy
fixtures, which are data rather than source. The test suite is left out too unless asked for, since many
distributions do not install it.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["calibration", "held-out"]

_NOT_SOURCE = {"site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__", "cjkencodings", "data"}
_TEST_FOLDERS = {"test", "tests", "idle_test"}


def is_held_out(path: Path) -> bool:
    """Whether a module belongs to the held-out sixteenth: by name alone, `test_x` together with `x`."""
    stem = path.parent.name if path.stem == "__init__" else path.stem
    return hashlib.sha256(stem.removeprefix("test_").encode()).digest()[0] < 16


def stdlib_files(split: Split, *, tests: bool = False, root: Path | None = None) -> list[Path]:
    """The `.py` files of one split in a fixed order (by relative path).

    Args:
        split: "calibration" or "held-out".
        tests: also the standard library's own test suite, where it is installed.
        root: another tree to read in place of this interpreter's library.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    skip = _NOT_SOURCE if tests else _NOT_SOURCE | _TEST_FOLDERS
    files = (Path(folder) / name for folder, names in _folders(root, skip) for name in names if name.endswith(".py"))
    return sorted((path for path in files if is_held_out(path) == (split == "held-out")), key=lambda p: p.as_posix())


def _folders(root: Path, skip: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Folders and the names in them; those to skip, among them all that is installed, are not even listed."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skip]
        yield folder, names


def stdlib_texts(split: Split, *, tests: bool = False, root: Path | None = None) -> Iterator[str]:
    """The text of each file of one split, in the order of `stdlib_files`; files that are not UTF-8 are left out."""
    for path in stdlib_files(split, tests=tests, root=root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield text
