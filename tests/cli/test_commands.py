"""The command line from end to end: exit codes, what goes to stdout, and the files it leaves."""

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lowbit.cli import main
from lowbit.cli.app import app
from lowbit.core.errors import BadRequest
from pipeline.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def quantized(model, tmp_path_factory):
    """A folder made by the real command in a process of its own, with what it printed."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    arguments = ["quantize", model, "--out", out, "--set", "bits=3", "--samples", "2", "--sequence-length", "32"]
    arguments += ["--override", "*down_proj:bits=8,group_size=16", "--ignore", "*.0.*k_proj", "--json"]
    done = subprocess.run([sys.executable, "-m", "lowbit", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done


def data_of(folder):
    return json.loads((folder / "report.json").read_text())


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def test_quantize_prints_json_and_nothing_else(quantized):
    out, done = quantized
    record = json.loads(done.stdout)
    assert record == json.loads((out / "report.json").read_text())
    bits = {layer["name"]: layer["bits_per_weight"] for layer in record["layers"]}
    assert len(bits) == 13
    assert bits["model.layers.0.mlp.down_proj"] > 8 > bits["model.layers.0.mlp.up_proj"] > 3
    assert "quantizing layers" in done.stderr


def test_the_folder_is_complete(quantized):
    out, _ = quantized
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "report.html", "modeling_lowbit.py"} <= names
    assert ".lowbit" not in names


def test_eval(model, quantized, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    found = run("eval", quantized[0], "--reference", model, "--text", text, "--windows", 3, "--json")
    measures = json.loads(found.stdout)
    assert measures["divergence"]["kl"]["mean"] > 0
    assert measures["windows"] == 3
    assert 3 < measures["size"]["bits_per_weight"] < 8
    assert "perplexity" in run("eval", quantized[0], "--text", text).stdout
    half = run(
        "eval", quantized[0], "--reference", model, "--text", text, "--windows", 3, "--json", "--dtype", "bfloat16"
    )
    kl = json.loads(half.stdout)["divergence"]["kl"]["mean"]
    assert kl != measures["divergence"]["kl"]["mean"]
    assert kl == pytest.approx(measures["divergence"]["kl"]["mean"], rel=0.3)
    assert "--dtype half: must be one of float32" in str(run("eval", quantized[0], "--dtype", "half").exception)


def test_generate(quantized):
    found = run("generate", quantized[0], "def f(", "--tokens", 5)
    assert found.exit_code == 0
    assert found.stdout.startswith("def f(")
    assert "--tokens 0: must be at least 1" in str(run("generate", quantized[0], "def", "--tokens", 0).exception)


def test_plan_takes_the_text_and_refuses_what_is_not_there(model, tmp_path):
    missing = run("plan", model, "--recipe", "rtn", "--calibration", tmp_path / "none.txt")
    assert "none.txt does not exist" in str(missing.exception)


def test_inspect(quantized):
    found = run("inspect", quantized[0])
    assert "13 quantized layers" in " ".join(found.stdout.split())
    farthest = found.stdout[found.stdout.index("The five layers farthest from the least loss") :]
    worst = max(data_of(quantized[0])["layers"], key=lambda layer: layer["bits_above_limit"])
    assert worst["name"].startswith(farthest.splitlines()[4].split()[0])  # names wrap in narrow terminals
    assert worst["limit"] < worst["loss"] <= worst["bound"] or worst["clamped"]
    data = json.loads(run("inspect", quantized[0], "--json").stdout)
    assert len(data["layers"]) == 13
    assert len(data["recipes"]) == 2


def test_report_measures_and_is_written_back(quantized, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(quantized[0], folder)
    found = run("report", folder, "--windows", "2", "--sequence-length", "48", "--json")
    record = json.loads(found.stdout)
    assert record == data_of(folder)
    assert record["measures"]["windows"] == 2
    assert record["measures"]["text"] == "stdlib"
    assert len(record["continuations"]) == 2
    assert "Side by side" in (folder / "report.html").read_text(encoding="utf-8")
    before = data_of(quantized[0])
    assert {key: record[key] for key in before} == before
    assert "2210.17323" in record["citations"][0]
    (folder / "report.json").unlink()
    assert "no report.json" in str(run("report", folder).exception)


def test_inspect_refuses_a_damaged_folder(quantized, tmp_path):
    for path in quantized[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    assert isinstance(run("inspect", tmp_path).exception, BadRequest)


def test_plan(model):
    found = run("plan", model, "--set", "bits=3")
    assert "14 layers to quantize" in found.stdout
    assert "outside the decoder blocks" in found.stdout
    data = json.loads(run("plan", model, "--recipe", "rtn", "--json").stdout)
    assert len(data["layers"]) == 14
    assert data["bytes_after"] < data["bytes_before"]


def test_recipes():
    listed = run("recipes")
    assert "optq" in listed.stdout
    assert "rtn" in listed.stdout
    one = run("recipes", "optq")
    assert "2210.17323" in one.stdout
    assert 'part = "Ldlq"' in one.stdout
    data = json.loads(run("recipes", "--json").stdout)
    assert all(recipe["bits_per_weight"] > 0 for recipe in data)


def test_a_recipe_from_a_file(model, tmp_path):
    text = run("recipes", "optq").stdout
    path = tmp_path / "my.toml"
    path.write_text(text[text.index("name = ") :].replace("bits = 4", "bits = 2"))
    data = json.loads(run("plan", model, "--recipe", path, "--json").stdout)
    assert 2 < data["bits_per_weight"] < 3.2
    assert isinstance(run("plan", model, "--recipe", path, "--set", "bits=3").exception, BadRequest)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["quantize", "/nowhere", "--out", "x"], 2, "not a folder"),
        (["plan", "MODEL", "--recipe", "nothing"], 2, "No recipe named"),
        (["plan", "MODEL", "--set", "bits"], 2, "must be name=value"),
        (["plan", "MODEL", "--override", "bits=3"], 2, "must be PATTERN:setting=value"),
        (["nothing"], 2, "No such command"),
    ],
)
def test_bad_requests_exit_with_2_and_one_paragraph(model, monkeypatch, capsys, arguments, code, message):
    arguments = [str(model) if argument == "MODEL" else argument for argument in arguments]
    assert exit_code(monkeypatch, arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_failure_exits_with_1(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lowbit.pipeline.quantize._TOLERANCE", -1)
    assert exit_code(monkeypatch, ["quantize", model, "--out", tmp_path / "out", "--recipe", "rtn"]) == 1
    assert "differs from what was computed" in capsys.readouterr().err


def test_a_full_disk_exits_with_1_and_the_way_out(model, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowbit.pipeline.drive.write_tensors_atomically", full)
    assert exit_code(monkeypatch, ["quantize", model, "--out", tmp_path / "out", "--recipe", "rtn"]) == 1
    assert "No space left on device" in (error := capsys.readouterr().err)
    assert "--resume" in error


def exit_code(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["lowbit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_compare_measures_what_was_not_and_writes_a_page(quantized, tmp_path):
    folders = [tmp_path / place / "out" for place in ("a", "b")]
    for folder in folders:
        shutil.copytree(quantized[0], folder)
    page = tmp_path / "page.html"
    arguments = ["--windows", "2", "--sequence-length", "48", "--out", page, "--json"]
    rows = json.loads(run("compare", *folders, *arguments).stdout)
    assert {row["label"] for row in rows} == {"a/out", "b/out"}
    assert rows[0]["kl"] == rows[1]["kl"] > 0
    assert "checkpoints of" in page.read_text(encoding="utf-8")
    assert all("measures" in data_of(folder) for folder in folders)
    assert "given twice" in str(run("compare", folders[0], folders[0]).exception)
