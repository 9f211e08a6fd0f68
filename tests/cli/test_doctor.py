"""`lowbit doctor`: what it says of a machine and of recipes; how fast anything is, is not tested."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from lowbit.cli import doctor
from lowbit.cli.app import app
from lowbit.core.errors import BadRequest
from lowbit.pipeline.forecast import activation_memory, peak_memory, run_seconds
from lowbit.pipeline.machine import Speeds, inspect_machine
from lowbit.recipes import optq, rtn, trellis
from pipeline.tiny import save_tiny


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(doctor, "measure_speeds", lambda: Speeds(1e10, 1e10, 5e9, 1e5))


def told(*arguments):
    done = CliRunner().invoke(app, ["doctor", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def test_json_holds_machine_speeds_and_recipes():
    data = json.loads(told("--parameters", "1M", "--recipe", "rtn", "--recipe", "optq", "--json"))
    assert data["machine"]["memory"] > data["machine"]["free_memory"] > 0
    assert data["machine"]["versions"].keys() == {"python", "torch", "transformers", "numba", "triton"}
    assert [row["recipe"] for row in data["recipes"]] == ["rtn", "optq"]
    assert all(row["seconds"] > 0 and row["memory"] > 0 and row["disk"] > 0 for row in data["recipes"])
    assert [row["why_not"] for row in data["recipes"]] == ["", ""]


def test_a_model_at_hand(tmp_path):
    assert "practical here" in told(save_tiny("llama", tmp_path / "model"), "--recipe", "rtn", "--samples", "2")


def test_what_does_not_fit_is_said_with_what_to_do(monkeypatch):
    machine = replace(inspect_machine(), free_memory=10**8)
    monkeypatch.setattr(doctor, "inspect_machine", lambda: machine)
    assert "Memory is short: 100 MB are free." in told("--parameters", "1M", "--recipe", "rtn")


def test_a_size_that_is_none():
    for text in ("eight", "8X", "-1B", "1", ""):
        with pytest.raises(BadRequest, match=r"--parameters .*: must be a size"):
            doctor.parameter_count(text)
    assert doctor.parameter_count("1.5b") == 1_500_000_000


@pytest.mark.parametrize(("size", "blocks", "width"), [(6_700_000_000, 32, 4096), (65_000_000_000, 69, 8960)])
def test_llamas_have_about_the_shapes_of_their_size(size, blocks, width):
    work = doctor.llama_workload(size, rtn(), 8, 512)
    assert abs(len(work.blocks) - blocks) <= 2
    assert abs(work.width - width) <= 256
    held = work.outside + sum(block.weights for block in work.blocks)
    assert held == pytest.approx(size, rel=0.1)


def test_memory_grows_with_what_a_recipe_looks_at():
    peaks = [peak_memory(doctor.llama_workload(10**9, recipe, 16, 2048)) for recipe in (rtn(), optq(), trellis())]
    assert peaks == sorted(peaks)
    few, more = (doctor.llama_workload(10**9, optq(), samples, 2048) for samples in (16, 64))
    held = activation_memory(more) - activation_memory(few)
    assert 0 < held <= more.budget
    assert peak_memory(more) - peaks[1] == pytest.approx(held, rel=0.2)


def test_time_grows_with_tokens_only_where_they_are_read(monkeypatch):
    monkeypatch.setattr("lowbit.pipeline.forecast.product_speed", lambda dtype, seconds: 1e10)
    monkeypatch.setattr("lowbit.pipeline.forecast.seconds_per_weight", lambda recipe, shape: 1e-6)
    times = {
        (recipe.name, samples): run_seconds(doctor.llama_workload(10**8, recipe, samples, 512))
        for recipe in (rtn(), optq())
        for samples in (8, 16)
    }
    assert times["rtn", 8] == times["rtn", 16]
    assert times["optq", 8] < times["optq", 16]
