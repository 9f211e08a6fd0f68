"""A command that is stopped, or for which memory runs out, says in a line how to go on, and that leads to the end."""

import os
import shlex
import signal
import sys

import pytest
import torch

import lowbit
from lowbit.cli import main
from lowbit.core.errors import BadRequest
from lowbit.pipeline.journal import Journal
from pipeline.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def heard():
    """Signals as a terminal's command finds them; in the background of a script Ctrl-C is ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    found = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in found.items():
        signal.signal(number, handler)


def called(monkeypatch, *arguments):
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["lowbit", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def signalled(number):
    return lambda: os.kill(os.getpid(), number)


def out_of_memory():
    raise MemoryError


@pytest.mark.parametrize(
    ("meet", "code", "said"),
    [
        (signalled(signal.SIGINT), 130, "stopped"),
        (signalled(signal.SIGTERM), 143, "stopped"),
        (lambda: torch.empty(2**52), 1, "memory ran out"),
        (out_of_memory, 1, "memory ran out"),
    ],
    ids=["Ctrl-C", "SIGTERM", "torch without memory", "Python without memory"],
)
def test_what_ends_a_run_says_how_to_go_on(model, tmp_path, monkeypatch, capsys, meet, code, said):
    out, record = tmp_path / "out", Journal.record

    def meeting(self, *line):
        record(self, *line)
        if len(self.entries) == 3:
            meet()

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "record", meeting)
        assert called(patched, "quantize", model, "--out", out, "--recipe", "rtn") == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lowbit: {said}. Nothing finished is lost")
    assert called(monkeypatch, *shlex.split(line.partition("to go on: lowbit ")[2])) == 0
    lowbit.load(out)


@pytest.mark.parametrize(("own", "code"), [(signal.SIG_IGN, 2), (signal.default_int_handler, 130)])
def test_signals_that_are_ignored_stay_ignored_and_handlers_come_back(model, monkeypatch, own, code):
    def interrupted(*args, **settings):
        os.kill(os.getpid(), signal.SIGINT)
        raise BadRequest("went on")

    monkeypatch.setattr("lowbit.api.plan", interrupted)
    before = signal.signal(signal.SIGINT, own)
    try:
        assert called(monkeypatch, "plan", model, "--recipe", "rtn") == code
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_errors_are_not_taken_for_a_lack_of_memory(model, tmp_path, monkeypatch):
    def wrong(self, *line):
        raise RuntimeError("a fault")

    monkeypatch.setattr(Journal, "record", wrong)
    with pytest.raises(RuntimeError, match="a fault"):
        called(monkeypatch, "quantize", model, "--out", tmp_path / "out", "--recipe", "rtn")
