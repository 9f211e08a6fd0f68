"""Runs that are killed and resumed end in the same bytes; unfinished folders load as nothing."""

import functools
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import lowbit
from lowbit import api
from lowbit.core.errors import BadRequest, LowbitError
from lowbit.pipeline import assemble
from lowbit.pipeline import quantize as pipeline
from lowbit.pipeline.journal import Journal, exclusive
from lowbit.pipeline.quantize import Calibration, Options
from pipeline.killing import Killed, kill_at
from pipeline.tiny import contents, save_tiny

CALIBRATION = Calibration(samples=4, length=32)
RECIPE = lowbit.recipes.optq(bits=3, group_size=16)


LINES = 1 + 14 + 1  # the run, its layers, quantized
FILES = 9  # of a finished folder, three of them reports


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
        *((line, "before") for line in (2, 5, 8, 15, LINES)),
        *((line, when) for line in (2, LINES) for when in ("middle", "after")),
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
    """The second time at the first line that the resumed run writes."""
    out = tmp_path / "out"
    for first in (line, 1):
        with monkeypatch.context() as patched:
            kill_at(patched, first, "before")
            with pytest.raises(Killed):
                run(model, out)
    run(model, out)
    assert contents(out) == finished


@pytest.fixture(scope="module")
def killed(model, tmp_path_factory):
    """What a run leaves that is killed right after a line, made once for each line; to be copied."""

    @functools.cache
    def after(line):
        out = tmp_path_factory.mktemp("killed") / "out"
        with pytest.MonkeyPatch.context() as patched:
            kill_at(patched, line, "after")
            with pytest.raises(Killed):
                run(model, out)
        return out

    return after


def resumed(model, out, monkeypatch, **changed):
    """The names of the steps that a resumed run does."""
    done, record = [], Journal.record
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "record", lambda self, *args: (done.append(args[1]), record(self, *args)))
        run(model, out, **changed)
    return done


def digit_of_a_loss(lines):
    start = lines[3].index(b".", lines[3].index(b'"loss"')) + 1
    digit = b"2" if lines[3][start : start + 1] == b"1" else b"1"
    return [*lines[:3], lines[3][:start] + digit + lines[3][start + 1 :], *lines[4:]]


@pytest.mark.parametrize(
    ("damage", "lost"),
    {
        "a byte": (lambda lines: [*lines[:3], lines[3][:20] + b"\xff" + lines[3][21:], *lines[4:]], 1),
        "a digit": (digit_of_a_loss, 1),
        "a line is gone": (lambda lines: lines[:3] + lines[4:], 1),
        "a line of another kind": (lambda lines: [*lines[:3], b"[1]", *lines[3:]], 0),
        "zeros after a power cut": (lambda lines: [*lines[:-1], bytes(4096)], 0),
        "the second half is gone": (lambda lines: lines[:5], 4),
    }.values(),
)
def test_a_damaged_journal_costs_the_damaged_steps(model, finished, killed, tmp_path, monkeypatch, damage, lost):
    out = tmp_path / "out"
    shutil.copytree(killed(8), out)
    journal = out / ".lowbit" / "journal.jsonl"
    journal.write_bytes(b"\n".join(damage(journal.read_bytes().split(b"\n"))))
    assert len(resumed(model, out, monkeypatch)) == LINES - 8 + lost
    assert contents(out) == finished


def test_a_journal_without_its_first_line_is_refused(model, killed, tmp_path):
    shutil.copytree(killed(8), tmp_path / "out")
    journal = tmp_path / "out" / ".lowbit" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[1:])
    with pytest.raises(BadRequest, match="first line, what the run is of, is damaged"):
        run(model, tmp_path / "out")


def test_the_journal_has_the_lines_that_are_killed_above(model, tmp_path, monkeypatch):
    written = []
    record = Journal.record
    monkeypatch.setattr(Journal, "record", lambda self, *args: (written.append(args), record(self, *args)))
    run(model, tmp_path / "out")
    assert len(written) == LINES


@pytest.mark.parametrize("moment", [0, 2, FILES - 1])
def test_killed_while_moving_into_place(model, finished, killed, tmp_path, monkeypatch, moment):
    out = tmp_path / "out"
    shutil.copytree(killed(LINES), out)
    replace, moved = Path.replace, [0]

    def dying(self, target):
        moved[0] += target.parent == out
        if moved[0] > moment:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            run(model, out)
    assert len(list(out.iterdir())) == 1 + moment
    with pytest.raises(BadRequest):
        lowbit.load(out)
    run(model, out)
    assert contents(out) == finished


def test_killed_when_all_is_in_place_leaves_a_model_with_its_report(model, finished, killed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(killed(LINES), out)

    def dying(folder):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(assemble.shutil, "rmtree", dying)
        with pytest.raises(Killed):
            run(model, out)
    assert len([path for path in out.iterdir() if path.is_file()]) == FILES
    lowbit.load(out)
    assert run(model, out) == json.loads((out / "report.json").read_text())
    assert contents(out) == finished
    assert not (out / ".lowbit").exists()
    (out / ".lowbit").mkdir()  # killed before even that was removed
    for resume, message in ((True, "holds a finished model"), (False, "not empty. Give another folder")):
        with pytest.raises(BadRequest, match=message):
            run(model, out, options=Options(resume))


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


FEW = {"calibration": Calibration(samples=1, length=16)}


def test_experts_that_share_statistics_survive_kills(tmp_path, monkeypatch):
    """And a run may be strict from a certain point on: what was noted before that counts as well."""
    experts = save_tiny("mixtral", tmp_path / "model")
    run(experts, tmp_path / "whole", **FEW)
    for line in (8, 4, 6):  # of what is left each time
        with monkeypatch.context() as patched:
            kill_at(patched, line, "before")
            with pytest.raises(Killed):
                run(experts, tmp_path / "out", **FEW)
    with pytest.raises(LowbitError, match=r"experts.*--strict"):
        run(experts, tmp_path / "out", options=Options(resume=True, strict=True), **FEW)
    run(experts, tmp_path / "out", **FEW)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("line", [8, LINES])
@pytest.mark.parametrize("damage", ["a bit", "all of it"])
def test_a_damaged_layer_file_is_solved_again(model, finished, killed, tmp_path, monkeypatch, line, damage):
    out = tmp_path / "out"
    shutil.copytree(killed(line), out)
    damaged = next((out / ".lowbit" / "layers").glob("*o_proj*"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1])) if damage == "a bit" else damaged.unlink()
    assert "model.layers.0.self_attn.o_proj" in resumed(model, out, monkeypatch)
    assert contents(out) == finished


def test_a_resumed_run_needs_no_room_for_what_is_written_already(model, killed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(killed(LINES), out)
    needed = 2 * api.plan(model, RECIPE).bytes_after
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: type("Usage", (), {"free": needed - 10_000}))
    with pytest.raises(BadRequest, match="GB on disk"):
        run(model, tmp_path / "new")
    run(model, out)


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("recipe", {"ignore": ["*q_proj"]}),
        ("calibration", {"calibration": Calibration(samples=4, length=32, seed=1)}),
        ("model", {}),
    ],
)
def test_resuming_with_something_else_is_refused(model, killed, tmp_path, what, changed):
    out = tmp_path / "out"
    shutil.copytree(killed(8), out)
    other = save_tiny("llama", tmp_path / "other", seed=1) if what == "model" else model
    with pytest.raises(BadRequest, match=f"another {what}"):
        run(other, out, **{"options": Options(resume=True)} | changed)


def test_two_runs_on_one_folder(tmp_path):
    with exclusive(tmp_path), pytest.raises(BadRequest, match="another lowbit run"), exclusive(tmp_path):
        pass


def test_a_run_that_waited_while_another_finished_leaves_that_alone(model, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"

    @contextmanager
    def late(folder):
        patched.undo()
        shutil.rmtree(folder)
        run(model, out, options=Options())
        folder.mkdir()
        with exclusive(folder):
            yield

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "exclusive", late)
        with pytest.raises(BadRequest, match="another run has just ended here"):
            lowbit.quantize(model, out, "rtn")
    shutil.rmtree(out / ".lowbit")
    assert contents(out) == finished
