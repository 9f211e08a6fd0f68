"""Exports and imports that die at their n-th step on the disk, in processes of their own.

    dies_everywhere({"gptq": (folder, place), "import": (another, elsewhere)})

A process imports lowbit once, on one thread (no pool of threads survives a fork), and forks for each job and n: the
fork does the job into `place/n` and is killed at the n-th write or rename, until one gets to its end.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from lowbit import api
from lowbit.formats import files

_PATIENCE = 60  # seconds for one export, which takes a fraction of one
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def dies_everywhere(jobs):
    """By job, the folders in which it died, and the one that it finished.

    jobs: a format to export to, or "import", to its folder and the place to work in.
    """
    words = [str(word) for job, (folder, place) in jobs.items() for word in (job, folder, place)]
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | _ONE_THREAD)
    assert done.returncode == 0, done.stderr
    folders = {job: [Path(line) for line in done.stdout.split() if line.startswith(f"{jobs[job][1]}/")] for job in jobs}
    return {job: (died, finished) for job, (*died, finished) in folders.items()}


def _dying(step):
    """Every write and rename counts; at the given one the process is gone, and nothing cleans up after it."""
    count = 0

    def counted(act):
        def acting(*arguments):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments)

        return acting

    files._put, Path.replace = counted(files._put), counted(Path.replace)


def _until_it_ends(job, folder, place):
    step, status = 0, -1
    while status:
        step += 1
        out = Path(place) / str(step)
        child = os.fork()
        if child == 0:
            signal.alarm(_PATIENCE)
            _dying(step)
            if job == "import":
                api.import_(folder, out)
            else:
                api.export(folder, out, job)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status not in (0, signal.SIGKILL):
            sys.exit(f"{job}: step {step} ended with {status}")
        print(out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = iter(sys.argv[1:])
    for triple in zip(words, words, words, strict=True):
        _until_it_ends(*triple)
