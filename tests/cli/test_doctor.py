"""`lowbit doctor`: what it says of a machine and of recipes; how fast anything is, is not tested."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from lowbit.cli import practical
from lowbit.cli.app import app
from lowbit.core.errors import BadRequest
from lowbit.pipeline.forecast import activation_memory, peak_memory, run_seconds
from lowbit.pipeline.machine import Speeds, inspect_machine
from lowbit.recipes import optq, rtn, trellis
from pipeline.tiny import save_tiny


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("lowbit.pipeline.machine.measure_speeds", lambda: Speeds(1e10, 1e10, 5e9, 1e5))


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
    assert [row["lacking"] for row in data["recipes"]] == [{}, {}]
    assert {row["model"] for row in data["recipes"]} == {"1M"}


def test_a_model_at_hand(tmp_path):
    shown = told(save_tiny("llama", tmp_path / "model"), "--recipe", "rtn", "--samples", "2")
    assert "All of these are practical here" in shown


@pytest.fixture
def speeds(monkeypatch):
    """A machine of known speed: 1e10 multiply-adds and a million weights a second."""
    monkeypatch.setattr("lowbit.pipeline.forecast.product_speed", lambda *given: 1e10)
    monkeypatch.setattr("lowbit.pipeline.forecast.seconds_per_weight", lambda recipe, shape: 1e-6)


def test_what_there_is_too_little_of_is_said_with_what_to_do(speeds):
    def lacking(samples, size=10**9, **changes):
        machine = replace(inspect_machine(), **{"free_memory": 10**12, "free_disk": 10**12, **changes})
        return practical.judged(optq(), "it", practical.llama_workload(size, optq(), samples), machine).lacking

    assert lacking(16) == {}
    assert set(lacking(16, free_disk=10**6, free_memory=10**6)) == {"disk", "memory"}
    assert "--samples 64 takes" in lacking(128)["time"]
    assert "needs more cores" in lacking(128, size=70 * 10**9)["time"]
    needed = peak_memory(practical.llama_workload(10**9, optq(), 16, 2048))
    assert lacking(128, free_memory=needed + 10**8)["memory"] == "--samples 16 fits"


def test_the_table_marks_what_is_lacking(monkeypatch, speeds):
    machine = replace(inspect_machine(), free_memory=10**8)
    monkeypatch.setattr("lowbit.pipeline.machine.inspect_machine", lambda: machine)
    shown = " ".join(told("--parameters", "1B", "--recipe", "rtn").split())
    assert "GB!" in shown
    assert "1B, memory for rtn: needs a larger machine" in shown


def test_a_size_that_is_none():
    for text in ("eight", "8X", "-1B", "1", ""):
        with pytest.raises(BadRequest, match=r"--parameters .*: must be a size"):
            practical.parameter_count(text)
    assert practical.parameter_count("1.5b") == 1_500_000_000


@pytest.mark.parametrize(("size", "blocks", "width"), [(6_700_000_000, 32, 4096), (65_000_000_000, 69, 8960)])
def test_llamas_have_about_the_shapes_of_their_size(size, blocks, width):
    work = practical.llama_workload(size, rtn(), 8, 512)
    assert abs(len(work.blocks) - blocks) <= 2
    assert abs(work.width - width) <= 256
    held = work.outside + sum(block.weights for block in work.blocks)
    assert held == pytest.approx(size, rel=0.1)


def test_memory_grows_with_what_a_recipe_looks_at():
    peaks = [peak_memory(practical.llama_workload(10**9, recipe, 16, 2048)) for recipe in (rtn(), optq(), trellis())]
    assert peaks[0] < peaks[1] < peaks[2]
    few, more = (practical.llama_workload(10**9, optq(), samples, 2048) for samples in (16, 64))
    held = activation_memory(more) - activation_memory(few)
    assert 0 < held <= more.budget
    assert peak_memory(more) - peaks[1] == pytest.approx(held, rel=0.2)


def test_time_grows_with_tokens_only_where_they_are_read(speeds):
    times = {
        (recipe.name, samples): run_seconds(practical.llama_workload(10**8, recipe, samples, 512))
        for recipe in (rtn(), optq())
        for samples in (8, 16)
    }
    assert times["rtn", 8] == times["rtn", 16]
    assert times["optq", 8] < times["optq", 16]
