"""Folders of several shards, and what is left where writing one fails."""

import json
import os
from pathlib import Path

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
    assert moved[-3:] == ["a.json", "model.safetensors", "config.json"]
    assert names(tmp_path / "out") == sorted(moved[-3:])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(out, *files):
    with staged(out) as staging:
        for name in files:
            (staging / name).write_text("{}")


def failing_after(moves, fail):
    """`Path.replace` that calls `fail` in place of the move after so many into a folder's place."""
    replace, done = Path.replace, [0]

    def failing(self, to):
        done[0] += self.parent.name == ".partial" != to.parent.name
        if done[0] > moves:
            fail()
        return replace(self, to)

    return failing


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_what_a_kill_among_the_last_moves_leaves_is_no_model_and_no_hindrance(tmp_path, moves):
    out = tmp_path / "out"
    pid = os.fork()
    if pid == 0:
        try:
            Path.replace = failing_after(moves, lambda: os._exit(9))
            write(out, "config.json", "a.json", "b.json")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert names(out) == [".partial", "a.json", "b.json"][: 1 + moves]
    (out / "mine").write_text("")
    with pytest.raises(BadRequest, match=r"not empty \(it holds mine\)"):
        write(out, "config.json", "c.json")
    (out / "mine").unlink()
    write(out, "config.json", "c.json")
    assert names(out) == ["c.json", "config.json"]


@pytest.mark.parametrize("existed", [True, False])
def test_what_fails_among_the_last_moves_leaves_nothing(tmp_path, monkeypatch, existed):
    out = tmp_path / "out"
    if existed:
        out.mkdir()

    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", failing_after(1, stop))
    with pytest.raises(KeyboardInterrupt):
        write(out, "config.json", "a.json")
    assert list(tmp_path.iterdir()) == [out] * existed
    assert not existed or not names(out)


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


def test_places_that_are_no_folders_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nothing")
    for place, what in {"file": "is a file", "file/below": "file is a file", "link": "a link to nothing"}.items():
        with pytest.raises(BadRequest, match=what):
            write(tmp_path / place, "config.json")
    monkeypatch.setattr("os.access", lambda *args: False)  # whoever runs the tests may write anywhere
    with pytest.raises(BadRequest, match="cannot be written to"):
        write(tmp_path / "new", "config.json")
    assert names(tmp_path) == ["file", "link"]


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
