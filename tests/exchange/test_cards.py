"""The card of every kind of folder: what the hub reads, what is said of its making, and Python that really loads it."""

import importlib.util
import json
import re

import pytest
import yaml
from typer.testing import CliRunner

import lowbit
from exchange.folders import checkpoint
from lowbit.cli.app import app
from lowbit.core.errors import BadRequest
from lowbit.recipes import optq, rtn
from pipeline.tiny import save_tiny

SYMMETRIC = rtn(bits=4, group_size=32, symmetric=True)
EXPORTS = {
    "compressed-tensors": SYMMETRIC,
    "compressed-tensors with zero points": rtn(bits=4, group_size=32),
    "gguf": SYMMETRIC,
    "gptq": SYMMETRIC,
    "awq": SYMMETRIC,
}
BACKED = {"gptq": "gptqmodel", "awq": "gptqmodel", "gguf": "gguf"}


def card(folder):
    """The hub's part of a card as data, and the rest."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def run_snippet(folder, monkeypatch, capsys):
    """What the Python in a card prints, run beside the folder."""
    monkeypatch.chdir(folder.parent)
    capsys.readouterr()
    code = re.search(r"```python\n(.*?)```", card(folder)[1], re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    place = tmp_path_factory.mktemp("cards")
    save_tiny("llama", place / "model")
    lowbit.quantize(place / "model", place / "own", optq(bits=4, group_size=16, symmetric=True))
    return place / "own"


def test_a_quantized_folder(quantized, monkeypatch, capsys):
    front, text = card(quantized)
    assert front["library_name"] == "transformers"
    assert {"lowbit", "quantized", "optq"} <= set(front["tags"])
    assert "Frantar" in text
    assert run_snippet(quantized, monkeypatch, capsys).strip()


@pytest.mark.parametrize("case", EXPORTS)
def test_an_exported_folder(case, tmp_path, monkeypatch, capsys):
    format = case.partition(" ")[0]
    checkpoint(tmp_path / "own", EXPORTS[case])
    lowbit.export(tmp_path / "own", tmp_path / "out", format)
    front, text = card(tmp_path / "out")
    assert format in front["tags"]
    assert "exactly the same codes" in text
    package = BACKED.get(format, "compressed_tensors")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: the snippet is not run")
    assert run_snippet(tmp_path / "out", monkeypatch, capsys).strip()


def test_an_imported_folder_says_where_it_is_from_and_so_does_what_is_made_of_it(tmp_path, monkeypatch, capsys):
    checkpoint(tmp_path / "own", SYMMETRIC)
    lowbit.export(tmp_path / "own", tmp_path / "theirs", "gptq")
    lowbit.import_(tmp_path / "theirs", tmp_path / "ours")
    record = json.loads((tmp_path / "ours" / "report.json").read_text())
    assert (record["imported"], record["model"]["source"]) == ("gptq", str(tmp_path / "theirs"))
    assert record["size"]["bits_per_weight"] == pytest.approx(4.5, abs=0.01)
    assert "read from gptq by lowbit" in card(tmp_path / "ours")[1]
    assert run_snippet(tmp_path / "ours", monkeypatch, capsys).strip()
    lowbit.export(tmp_path / "ours", tmp_path / "again", "compressed-tensors")
    text = card(tmp_path / "again")[1]
    assert "`theirs`, a local folder, read from gptq" in text
    assert text.index("lowbit import") < text.index("lowbit export")


def test_an_imported_folder_can_be_inspected_but_has_no_report_of_its_making(tmp_path):
    checkpoint(tmp_path / "own", SYMMETRIC)
    lowbit.export(tmp_path / "own", tmp_path / "theirs", "awq")
    lowbit.import_(tmp_path / "theirs", tmp_path / "ours")
    inspected = CliRunner().invoke(app, ["inspect", str(tmp_path / "ours")])
    assert inspected.exit_code == 0, inspected.exception
    reported = CliRunner().invoke(app, ["report", str(tmp_path / "ours")])
    assert isinstance(reported.exception, BadRequest)
    assert "read from awq" in str(reported.exception)
