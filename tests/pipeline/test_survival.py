"""What a long run meets: kill -9 at any instant, a full disk, a shard that goes away, a clock that jumps, a rival.

After each the run, resumed, ends in the bytes of one that met nothing, or there is an error that says what to do and
nothing finished is lost.
"""

import errno
import io
import itertools
import os
import random
import shutil
import signal
import time

import pytest

import lowbit
from lowbit.core.errors import BadRequest, LowbitError
from lowbit.formats import files, shards
from lowbit.pipeline.activations import store
from lowbit.pipeline.journal import Journal, exclusive
from pipeline.forking import KILLED, Forks, quantize
from pipeline.killing import Killed
from pipeline.tiny import contents, save_tiny

KILLS_OF_A_RUN = 4
LINES = 1 + 14 + 1  # of the journal: the run, its layers, quantized


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 100)
    return path


@pytest.fixture(scope="module")
def finished(model, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    quantize(model, text, out)
    return contents(out)


@pytest.fixture(scope="module")
def forks(model, text):
    with Forks(model, text) as started:
        yield started


@pytest.fixture(scope="module")
def seconds(forks, tmp_path_factory):
    """How long a run takes that nothing happens to; the first one also warms up."""
    folder = tmp_path_factory.mktemp("timed")
    assert forks.run(folder / "first") == 0
    started = time.perf_counter()
    assert forks.run(folder / "second") == 0
    return time.perf_counter() - started


def kills_survived(forks, seconds, out, finished, draw, most):
    """How many kills a run met, `most` if it did not end before; it is resumed until it has ended."""
    kills = 0
    for lines in sorted(draw.choices(range(LINES + 1), k=most)):
        status = forks.run(out, lines, draw.uniform(0, seconds / 5))
        assert status in (KILLED, 0)
        kills += status == KILLED
        if (out / "config.json").exists():
            break
        with pytest.raises(BadRequest):
            lowbit.load(out)
    if not (out / "config.json").exists() or (out / ".lowbit" / "journal.jsonl").exists():
        assert forks.run(out) == 0
    assert contents(out) == finished
    return kills


def survives(forks, seconds, place, finished, seed):
    """Kill run after run, KILLS_OF_A_RUN times in all."""
    draw, left, runs = random.Random(seed), KILLS_OF_A_RUN, itertools.count()
    while left:
        left -= kills_survived(forks, seconds, place / f"run-{next(runs)}", finished, draw, left)


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_twenty_random_instants(forks, seconds, finished, tmp_path, seed):
    survives(forks, seconds, tmp_path, finished, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5, 60))
def test_killed_at_two_hundred_more_instants(forks, seconds, finished, tmp_path, seed):
    survives(forks, seconds, tmp_path, finished, seed)


@pytest.mark.parametrize("left", [[], [".lowbit/"], [".lowbit/journal.jsonl"]])
def test_killed_before_the_first_line(model, text, finished, tmp_path, left):
    out = tmp_path / "out"
    out.mkdir()
    for name in left:
        path = out / name
        (path if name.endswith("/") else path.parent).mkdir()
        if not name.endswith("/"):
            path.write_bytes(b'{"kind": "run", "na')
    quantize(model, text, out)
    assert contents(out) == finished


def full_after(writes):
    """A disk that takes `writes` pieces and half of the next one."""
    taken = [0]
    put = files._put

    def filling(file, data):
        taken[0] += 1
        if taken[0] > writes:
            put(file, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        put(file, data)

    return filling, taken


def pieces_of(model, text, out, monkeypatch):
    with monkeypatch.context() as patched:
        filling, taken = full_after(10**9)
        patched.setattr(files, "_put", filling)
        quantize(model, text, out)
    return taken[0]


def test_the_disk_fills_up_at_every_write(model, text, finished, tmp_path, monkeypatch):
    """One run, for which the disk is full at the first write, then at the second one of what is left, and so on."""
    total = pieces_of(model, text, tmp_path / "counted", monkeypatch)
    assert total > 50
    fill_at(model, text, finished, tmp_path, monkeypatch, range(0, total, max(1, total // 12)))


@pytest.mark.slow
def test_the_disk_fills_up_at_each_single_write(model, text, finished, tmp_path, monkeypatch):
    total = pieces_of(model, text, tmp_path / "counted", monkeypatch)
    fill_at(model, text, finished, tmp_path, monkeypatch, range(total))


def fill_at(model, text, finished, tmp_path, monkeypatch, moments):
    for moment in moments:
        out = tmp_path / f"full-at-{moment}"
        with monkeypatch.context() as patched:
            patched.setattr(files, "_put", full_after(moment)[0])
            with pytest.raises(LowbitError, match=r"the disk .* is full.*--resume"):
                quantize(model, text, out)
        assert not (out / "config.json").exists()
        assert not list(out.rglob("*.partial"))
        quantize(model, text, out)
        assert contents(out) == finished
        shutil.rmtree(out)


@pytest.mark.parametrize("how", ["vanishes", "is cut short", "is replaced", "cannot be read"])
def test_a_shard_goes_away_while_it_is_worked_on(model, text, finished, tmp_path, monkeypatch, how):
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(model, copy)
    shard = copy / "model.safetensors"
    whole = shard.read_bytes()
    record, opened = Journal.record, shards._opened

    class BadSector(io.BytesIO):
        def readinto(self, buffer):
            raise OSError(errno.EIO, "Input/output error")

    def going(self, kind, name, data):
        record(self, kind, name, data)
        if len(self.entries) == 4:
            if how == "vanishes":
                shard.unlink()
            elif how == "is cut short":
                shard.write_bytes(whole[: len(whole) // 2])
            elif how == "is replaced":
                shard.write_bytes(whole[:-100] + bytes(100))
            else:
                patched.setattr(shards, "_opened", lambda path: BadSector() if path == shard else opened(path))

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "record", going)
        with pytest.raises(LowbitError, match=r"model.safetensors.*\."):
            quantize(copy, text, out)
    shard.write_bytes(whole)
    done = sorted((out / ".lowbit" / "layers").iterdir())
    assert len(done) >= 3
    seen = []
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "record", lambda self, *args: (seen.append(args[1]), record(self, *args)))
        quantize(copy, text, out)
    assert contents(out) == finished
    assert not {path.stem for path in done} & set(seen), "finished layers were solved again"


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps(model, text, finished, tmp_path, monkeypatch, jump):
    draw, now, precise = random.Random(0), time.time, time.perf_counter
    monkeypatch.setattr(time, "time", lambda: now() + draw.choice([0, jump]))
    monkeypatch.setattr(time, "perf_counter", lambda: precise() + draw.choice([0, jump]))
    quantize(model, text, tmp_path / "out")
    assert contents(tmp_path / "out") == finished


def test_a_second_run_on_the_folder_is_refused_and_the_first_ends_well(forks, model, text, finished, tmp_path):
    out, journal = tmp_path / "out", tmp_path / "out" / ".lowbit" / "journal.jsonl"
    pid, started = forks.start(out), time.monotonic()
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < started + 60, "the run has not begun, or was over before it was seen"
        time.sleep(0.002)
    os.kill(pid, signal.SIGSTOP)  # stopped, so that it does not end first
    with pytest.raises(BadRequest, match="another lowbit run is writing here"):
        quantize(model, text, out)
    os.kill(pid, signal.SIGCONT)
    assert forks.end() == 0
    assert contents(out) == finished


def test_a_run_that_fails_lets_go_of_the_folder(model, text, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    record = Journal.record

    def dying(self, kind, name, data):
        record(self, kind, name, data)
        if len(self.entries) == 3:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "record", dying)
        with pytest.raises(Killed):
            quantize(model, text, out)
    quantize(model, text, out)
    assert contents(out) == finished


def test_no_room_for_hidden_states_is_found_before_they_are_written(tmp_path, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LowbitError, match=r"the disk .* is full"):
        store((2, 8, 4), 0, tmp_path / "hidden")


def test_a_lock_of_a_folder_that_was_finished_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *args: (tmp_path / "lock").unlink())
    with pytest.raises(BadRequest, match="has just ended"), exclusive(tmp_path):
        pass
