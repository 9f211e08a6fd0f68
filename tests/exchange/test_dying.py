"""A half-written folder is never mistaken for a whole one, wherever its making was killed, and can be made again."""

import pytest
from transformers import AutoModelForCausalLM

import lowbit
from exchange.dying import dies_everywhere
from exchange.folders import checkpoint
from lowbit.core.errors import BadRequest
from lowbit.recipes import rtn

DESCRIBING = {"README.md", "report.json"}
"""Written once the model is whole."""


def weights_and_settings(folder):
    found = (path for path in folder.iterdir() if path.name not in DESCRIBING and not path.name.startswith("."))
    return {path.name: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def deaths(tmp_path_factory):
    """By job, what it read, where it died and what it finished."""
    place = tmp_path_factory.mktemp("dying")
    checkpoint(place / "own", rtn(bits=4, group_size=32, symmetric=True), None, None, None)
    lowbit.export(place / "own", place / "theirs", "compressed-tensors")
    jobs = {"gptq": (place / "own", place / "export"), "import": (place / "theirs", place / "import")}
    return {job: (jobs[job][0], *found) for job, found in dies_everywhere(jobs).items()}


@pytest.mark.parametrize("job", ["gptq", "import"])
def test_a_folder_is_whole_or_no_model(job, deaths, tmp_path):
    source, died, finished = deaths[job]
    assert len(died) > 8
    whole = weights_and_settings(finished)
    unfinished = [folder for folder in died if not (folder / "config.json").exists()]
    assert unfinished
    assert all(weights_and_settings(folder) == whole for folder in died if folder not in unfinished)
    for folder in (folder for folder in unfinished if folder.exists()):
        for reads in (lowbit.load, lambda folder: lowbit.import_(folder, tmp_path / "never")):
            with pytest.raises(BadRequest):
                reads(folder)
        with pytest.raises((OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained(folder)
    assert not (tmp_path / "never").exists()
    started = next(folder for folder in unfinished if (folder / ".partial").exists())
    lowbit.import_(source, started) if job == "import" else lowbit.export(source, started, job)
    assert weights_and_settings(started) == whole
    assert not (started / ".partial").exists()
