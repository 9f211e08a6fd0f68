"""Malformed folders are refused by a BadRequest naming the trouble, soon, and believing no claimed size."""

import resource
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from formats.attacks.malformed import CONFIGS, FOLDERS, HEADERS, TENSORS
from formats.samples import write_checkpoint
from lowbit.core.errors import BadRequest
from lowbit.formats import Shards, check_checkpoint
from lowbit.recipes import from_dict

ATTACKS = HEADERS | FOLDERS | TENSORS | CONFIGS
MIB = 2**20


@contextmanager
def bounded(mebibytes: int) -> Iterator[None]:
    """Let the process map only so much more memory: what asks for more fails, even if it would never touch it."""
    if not sys.platform.startswith("linux"):
        yield
        return
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + mebibytes * MIB, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(folder)
    # Warmed up, so that only the attack's own memory counts.
    check_checkpoint(folder, from_dict)
    return folder


def test_no_two_attacks_share_a_name():
    assert len(ATTACKS) == sum(map(len, (HEADERS, FOLDERS, TENSORS, CONFIGS)))


@pytest.mark.parametrize(("damage", "named"), ATTACKS.values(), ids=ATTACKS.keys())
def test_a_malformed_checkpoint_is_refused(checkpoint, damage, named):
    damage(checkpoint)
    tracemalloc.start()
    try:
        started = time.process_time()
        with bounded(64), pytest.raises(BadRequest, match=named) as refusal:
            check_checkpoint(checkpoint, from_dict)
        spent, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB
    # A bound on work, not a measurement: the slowest takes some ten milliseconds.
    assert spent < 1
    assert str(checkpoint) in str(refusal.value)


@pytest.mark.parametrize(("damage", "named"), (HEADERS | FOLDERS).values(), ids=(HEADERS | FOLDERS).keys())
def test_a_malformed_dense_model_is_refused_alike(checkpoint, damage, named):
    damage(checkpoint)
    with pytest.raises(BadRequest, match=named):
        Shards.open(checkpoint)


def test_a_tensor_that_is_not_there_is_named(checkpoint):
    with pytest.raises(BadRequest, match="no tensor 'lm_head'"):
        Shards.open(checkpoint).load("lm_head")


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(checkpoint):
    shards = Shards.open(checkpoint)
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    last = max(shards.entries, key=lambda name: shards.entries[name].start)
    with pytest.raises(BadRequest, match=f"ends inside tensor '{last}'"):
        shards.load(last)
    file.unlink()
    with pytest.raises(BadRequest, match=r"model.safetensors cannot be opened"):
        shards.load(last)
