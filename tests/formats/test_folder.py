"""Folders of several shards, and what is left where writing one fails."""

import json

import pytest
import torch

from lowbit.core.errors import BadRequest
from lowbit.formats import folder
from lowbit.formats.folder import ShardWriter, copy_companions, staged
from lowbit.formats.shards import INDEX_NAME, Shards


def test_shards_are_bounded_and_indexed(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_SHARD_BYTES", 100)
    writer = ShardWriter(tmp_path)
    tensors = {f"layer.{i}": torch.full((10,), float(i)) for i in range(5)}
    for name, tensor in tensors.items():
        writer.add({name: tensor})
    writer.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [*(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), INDEX_NAME]
    assert json.loads((tmp_path / INDEX_NAME).read_text())["metadata"]["total_size"] == writer.nbytes == 200
    shards = Shards.open(tmp_path)
    assert all(torch.equal(shards.load(name), tensor) for name, tensor in tensors.items())


def test_config_is_moved_last(tmp_path, monkeypatch):
    moved = []
    path_type = type(tmp_path)
    original = path_type.replace
    monkeypatch.setattr(path_type, "replace", lambda self, to: (moved.append(to.name), original(self, to))[1])
    with staged(tmp_path / "out") as staging:
        for name in ("config.json", "a.json", "model.safetensors"):
            (staging / name).write_text("{}")
    assert moved == ["a.json", "model.safetensors", "config.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(moved)


def fail_in(out):
    with staged(out) as staging:
        (staging / "config.json").write_text("{}")
        raise ZeroDivisionError


def test_what_fails_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "there", tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            fail_in(out)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BadRequest, match="is a file"), staged(tmp_path / "out"):
        pass


def test_companions_are_what_belongs_to_the_model(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    names = (
        "config.json",
        "report.json",
        "tokenizer.json",
        "merges.txt",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
    )
    for name in names:
        (source / name).write_text(name)
    copy_companions(source, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "LICENSE",
        "chat_template.jinja",
        "merges.txt",
        "tokenizer.json",
    ]
