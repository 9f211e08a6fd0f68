"""Runs in processes of their own that start in milliseconds: a process imports lowbit once and forks for each run.

    with Forks(model, text) as forks:
        forks.run(out, lines=4, then=0.1)

Nothing but imports is done before the fork, and everything on one thread, for pools of threads do not survive one: an
OpenMP pool made by an import leaves the fork waiting for it for ever. Should that happen all the same, an alarm ends
it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numba
import torch

from lowbit.pipeline.plan import Assignment
from lowbit.pipeline.quantize import Calibration, Options, run
from lowbit.pipeline.source import SourceModel
from lowbit.recipes import optq

KILLED = -signal.SIGKILL
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_PATIENCE = 120  # seconds; a run takes one


class Forks:
    """The process that forks."""

    def __init__(self, model, text):
        self._command = [sys.executable, __file__, str(model), str(text)]

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | _ONE_THREAD,
        )
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        self._process.wait()

    def start(self, out):
        """The process id of a run into `out`, which goes on with what it finds there."""
        self._process.stdin.write(f"{out}\n")
        return int(self._process.stdout.readline())

    def end(self):
        """Exit status of the run, below zero the signal that ended it, once it is over."""
        self._process.stdin.write("\n")
        return int(self._process.stdout.readline())

    def run(self, out, lines=None, then=0.0):
        """Start and end, killing it `then` seconds after its journal has so many lines or is over."""
        pid, deadline = self.start(out), time.monotonic() + _PATIENCE
        if lines is not None:
            while _lines(out) < lines and not (out / "config.json").exists():
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(then)
            os.kill(pid, signal.SIGKILL)
        return self.end()


def _lines(out):
    journal = out / ".lowbit" / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def quantize(model, text, out):
    """The run that is killed."""
    run(
        str(model),
        Path(out),
        Assignment(optq(bits=3, group_size=16)),
        Calibration(str(text), samples=4, length=32),
        Options(resume=(Path(out) / ".lowbit").exists()),
    )


def _serve(model, text):
    torch.set_num_threads(1)
    SourceModel.open(model)  # for what it imports
    for out in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.alarm(_PATIENCE)
            numba.set_num_threads(1)
            quantize(model, text, out.strip())
            os._exit(0)
        print(pid, flush=True)
        sys.stdin.readline()  # until then the process id stays that of the run, alive or not
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
