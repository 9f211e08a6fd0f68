"""Files are whole or absent, the same bytes each time, and readable by the safetensors library."""

import hashlib
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from formats.samples import tensors
from lowbit.core.errors import LowbitError
from lowbit.formats import (
    Shards,
    file_digest,
    write_bytes_atomically,
    write_json_atomically,
    write_tensors_atomically,
)
from lowbit.formats.shards import DTYPES, read_tensors


def test_tensors_are_read_back_by_the_safetensors_library(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors_atomically(path, tensors(), {"format": "pt", "b": "ü"})
    read = load_file(path)
    assert read.keys() == tensors().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors().items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "b": "ü"}


def test_every_type_and_odd_shape_survives(tmp_path):
    written = {name: torch.arange(6).to(dtype).view(2, 3) for name, dtype in DTYPES.items()}
    written |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 7), "strided": torch.arange(12.0).view(3, 4).T}
    write_tensors_atomically(tmp_path / "model.safetensors", written, {})
    shards, theirs = Shards.open(tmp_path), load_file(tmp_path / "model.safetensors")
    assert shards.entries.keys() == written.keys()
    for name, tensor in written.items():
        read = shards.load(name)
        assert read.dtype == theirs[name].dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert torch.equal(read.float(), tensor.float())
    whole = read_tensors(tmp_path / "model.safetensors")
    assert all(torch.equal(whole[name].float(), tensor.float()) for name, tensor in written.items())
    assert shards.nbytes == sum(tensor.nbytes for tensor in written.values())


def test_the_bytes_do_not_depend_on_the_order_of_insertion(tmp_path):
    names = [str(i) for i in range(8)]
    many = {name: torch.full((3,), int(name), dtype=torch.uint8) for name in names}
    backwards = dict(reversed(many.items()))
    first = write_tensors_atomically(tmp_path / "a", many, dict.fromkeys(names, "x"))
    second = write_tensors_atomically(tmp_path / "b", backwards, dict.fromkeys(reversed(names), "x"))
    assert first == second == file_digest(tmp_path / "b")
    assert first == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_tensors_are_aligned_to_their_type(tmp_path):
    write_tensors_atomically(tmp_path / "model.safetensors", tensors(), {"format": "pt"})
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in Shards.open(tmp_path).entries.values())


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_tensors_atomically(path, {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.cfloat)}, {}),
        lambda path: write_json_atomically(path, {"a": object()}),
        lambda path: write_bytes_atomically(path, "text"),
    ],
    ids=["tensors", "json", "bytes"],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, write):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises((KeyError, TypeError)):
        write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_full_disk_half_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LowbitError, match=r"full, .* MB are free .*Free some space"):
        write_bytes_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_names_that_are_not_utf8_can_be_written_down(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json_atomically(tmp_path / "file", {"folder": name})
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == {"folder": name}


def test_what_a_crash_left_is_overwritten(tmp_path):
    (tmp_path / ".file.partial").write_bytes(b"half of a much longer file")
    write_json_atomically(tmp_path / "file", {"b": 1, "a": "é"})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == {"b": 1, "a": "é"}
