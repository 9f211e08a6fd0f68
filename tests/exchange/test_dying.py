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
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "folder"
    checkpoint(folder, rtn(bits=4, group_size=32, symmetric=True), None, None, None)
    return folder


@pytest.mark.parametrize("job", ["gptq", "import"])
def test_a_folder_is_whole_or_no_model(job, own, tmp_path):
    source = own
    if job == "import":
        source = tmp_path / "theirs"
        lowbit.export(own, source, "compressed-tensors")
    died, finished = dies_everywhere(source, tmp_path / "out", job)
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
