"""Runs that are killed and resumed end in the same bytes; unfinished folders load as nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import lowbit
from lowbit.core.errors import BadRequest
from lowbit.pipeline.journal import Journal, exclusive
from lowbit.pipeline.quantize import Calibration, Options
from pipeline.killing import Killed, kill_at
from pipeline.tiny import contents, save_tiny

CALIBRATION = Calibration(samples=4, length=32)
RECIPE = lowbit.recipes.optq(bits=3, group_size=16)


LINES = 1 + 14 + 2  # the run, its layers, quantized, checked


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    lowbit.quantize(model, out, RECIPE, calibration=CALIBRATION)
    return contents(out)


def run(model, out, **changed):
    settings = {"calibration": CALIBRATION, "options": Options(resume=out.exists())}
    return lowbit.quantize(model, out, RECIPE, **(settings | changed))


@pytest.mark.parametrize(
    ("line", "when"),
    [
        *((line, "before") for line in (2, 3, 5, 8, 12, 15, 16, LINES)),
        *((line, when) for line in (2, 8, 16, LINES) for when in ("middle", "after")),
    ],
)
def test_killed_at_a_journal_line_and_resumed_gives_the_same_bytes(model, finished, tmp_path, monkeypatch, line, when):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        kill_at(patched, line, when)
        with pytest.raises(Killed):
            run(model, out)
    with pytest.raises(BadRequest, match="resume"):
        lowbit.load(out)
    run(model, out)
    assert contents(out) == finished


@pytest.mark.slow
@pytest.mark.parametrize("line", range(2, LINES + 1))
def test_killed_twice_at_every_line(model, finished, tmp_path, monkeypatch, line):
    out = tmp_path / "out"
    for _ in range(2):
        with monkeypatch.context() as patched:
            kill_at(patched, line, "before")
            with pytest.raises(Killed):
                run(model, out)
    run(model, out)
    assert contents(out) == finished


def test_the_journal_has_the_lines_that_are_killed_above(model, tmp_path, monkeypatch):
    written = []
    record = Journal.record
    monkeypatch.setattr(Journal, "record", lambda self, *args: (written.append(args), record(self, *args)))
    run(model, tmp_path / "out")
    assert len(written) == LINES


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_killed_while_moving_into_place(model, finished, tmp_path, monkeypatch, moment):
    out = tmp_path / "out"
    path_type = type(out)
    replace, moved = path_type.replace, [0]

    def dying(self, target):
        if self.parent.name == "checkpoint" and not self.name.endswith(".partial"):
            moved[0] += 1
            if moved[0] > moment:
                raise Killed
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(path_type, "replace", dying)
        with pytest.raises(Killed):
            run(model, out)
    with pytest.raises(BadRequest):
        lowbit.load(out)
    run(model, out)
    assert contents(out) == finished


def test_kill_minus_nine(model, finished, tmp_path):
    """A real process, really killed, wherever it happens to be."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lowbit", "quantize", str(model), "--out", str(out), "--recipe", "optq"]
    command += ["--set", "bits=3", "--set", "group_size=16", "--samples", "4", "--sequence-length", "32"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = out / ".lowbit" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "config.json").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(out) == finished


def test_one_thread_or_two_give_the_same_bytes(model, finished, tmp_path):
    torch.set_num_threads(2)
    try:
        run(model, tmp_path / "out")
    finally:
        torch.set_num_threads(1)
    assert contents(tmp_path / "out") == finished


def test_spilled_activations_give_the_same_bytes(model, finished, tmp_path):
    run(model, tmp_path / "out", options=Options(budget=0))
    assert contents(tmp_path / "out") == finished


@pytest.mark.parametrize("line", [8, 12, 18])
def test_experts_that_share_statistics_survive_a_kill(tmp_path, monkeypatch, line):
    model = save_tiny("mixtral", tmp_path / "model")
    few = {"calibration": Calibration(samples=1, length=16)}
    run(model, tmp_path / "whole", **few)
    with monkeypatch.context() as patched:
        kill_at(patched, line, "before")
        with pytest.raises(Killed):
            run(model, tmp_path / "out", **few)
    run(model, tmp_path / "out", **few)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_damaged_layer_file_is_solved_again(model, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        kill_at(patched, 9, "before")
        with pytest.raises(Killed):
            run(model, out)
    damaged = next((out / ".lowbit" / "layers").glob("*o_proj*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    run(model, out)
    assert contents(out) == finished


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("recipe", {"ignore": ["*q_proj"]}),
        ("calibration", {"calibration": Calibration(samples=4, length=32, seed=1)}),
        ("model", {}),
    ],
)
def test_resuming_with_something_else_is_refused(model, tmp_path, monkeypatch, what, changed):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        kill_at(patched, 4, "before")
        with pytest.raises(Killed):
            run(model, out)
    other = save_tiny("llama", tmp_path / "other", seed=1) if what == "model" else model
    with pytest.raises(BadRequest, match=f"another {what}"):
        run(other, out, **{"options": Options(resume=True)} | changed)


def test_two_runs_on_one_folder(tmp_path):
    with exclusive(tmp_path), pytest.raises(BadRequest, match="another lowbit run"), exclusive(tmp_path):
        pass


def test_a_journal_that_is_none(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text("hello\n")
    with pytest.raises(BadRequest, match="line 1: not a journal line"):
        Journal.resume(path, {})
    path.write_text('{"kind": "layer", "name": "a"}\n')
    with pytest.raises(BadRequest, match="first line is missing"):
        Journal.resume(path, {})
