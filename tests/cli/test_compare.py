"""`lowbit compare` judges anybody's checkpoint beside lowbit's own, all on the same text."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import lowbit
from exchange.folders import CONFIG
from exchange.test_gguf import with_tokenizer
from lowbit.cli.app import app
from lowbit.core.errors import BadRequest

SHORT = ("--windows", "2", "--sequence-length", "24", "--json")


def compared(folder, *arguments):
    """(rows by label, exception) of a comparison whose page is `folder`/compare.html."""
    arguments = [*map(str, arguments), *SHORT, "--out", str(folder / "compare.html")]
    found = CliRunner().invoke(app, ["compare", *arguments])
    rows = json.loads(found.stdout) if found.exit_code == 0 else []
    return {row["label"]: row for row in rows}, found.exception


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, two quantizations of it, one of them exported, and that read again; nothing of it is measured yet."""
    place = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    model.save_pretrained(place / "model")
    with_tokenizer(place / "model")
    (place / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    for name, bits in (("own", 4), ("three", 3)):
        recipe = lowbit.recipes.rtn(bits=bits, group_size=32, symmetric=True)
        lowbit.quantize(place / "model", place / name, recipe)
    for format in ("gptq", "gguf"):
        lowbit.export(place / "own", place / format, format)
    lowbit.import_(place / "gptq", place / "imported")
    return place


@pytest.fixture(scope="module")
def everybody(folders):
    """All of them compared."""
    names = ("own", "three", "gptq", "gguf/model.gguf", "imported", "model")
    untouched = {path: path.stat().st_mtime_ns for name in ("gptq", "gguf") for path in (folders / name).iterdir()}
    rows, failed = compared(folders, *(folders / name for name in names), "--text", folders / "text.txt")
    assert failed is None
    assert untouched == {path: path.stat().st_mtime_ns for path in untouched}
    return rows


def test_the_same_codes_are_as_far_from_the_original_in_every_format(everybody):
    own = everybody["own"]
    assert own["kl"] > 0
    for label in ("gptq", "imported"):
        assert everybody[label]["kl"] == own["kl"]
        assert everybody[label]["agreement"] == own["agreement"]
    assert everybody["model.gguf"]["kl"] == pytest.approx(own["kl"], rel=1e-4)
    assert everybody["three"]["kl"] > own["kl"] > everybody["model"]["kl"] == 0


def test_what_nobody_has_a_record_of_shows_its_format(everybody):
    shown = {label: row["recipe"] for label, row in everybody.items()}
    expected = {"own": "rtn", "three": "rtn", "gptq": "gptq", "model.gguf": "gguf", "imported": "gptq"}
    assert shown == expected | {"model": "not quantized"}
    assert everybody["own"]["seconds"] > 0
    assert everybody["gptq"]["seconds"] is None


def test_sizes_are_those_of_the_files(everybody, folders):
    assert everybody["model.gguf"]["bytes"] == (folders / "gguf" / "model.gguf").stat().st_size
    assert everybody["gptq"]["bytes"] == (folders / "gptq" / "model.safetensors").stat().st_size
    assert everybody["model.gguf"]["bits_per_weight"] == 4.5  # Q4_0: 18 bytes for 32 weights
    assert everybody["gptq"]["bits_per_weight"] > everybody["own"]["bits_per_weight"]  # zero points and g_idx
    assert everybody["model"]["bits_per_weight"] == pytest.approx(32, rel=0.05)


def test_the_page_says_which_have_no_record(everybody, folders):
    html = (folders / "compare.html").read_text(encoding="utf-8")
    words = " ".join(re.sub("<.*?>", " ", html.replace("<wbr>", "")).split())
    assert "recipe.code.bits 3 4" in words
    assert re.search("How [^.]*gptq[^.]* were made is not known", words.replace("model.gguf", "model"))


def test_a_finished_report_says_what_the_others_are_measured_on(everybody, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, failed = compared(tmp_path, folders / "gptq", folders / "own", "--text", folders / "text.txt")
    assert failed is None
    found = CliRunner().invoke(app, ["compare", str(folders / "own"), str(folders / "gptq"), "--json"])
    assert {row["label"]: row for row in json.loads(found.stdout)} == rows


def test_another_text_is_measured_anew(everybody, folders, tmp_path):
    shutil.copytree(folders / "own", tmp_path / "own")
    (tmp_path / "other.txt").write_text("Pack my box with five dozen liquor jugs. " * 40)
    rows, failed = compared(tmp_path, tmp_path / "own", folders / "gptq", "--text", tmp_path / "other.txt")
    assert failed is None
    assert rows["own"]["kl"] == rows["gptq"]["kl"] != everybody["own"]["kl"]
    kept, before = (json.loads((place / "own" / "report.json").read_text()) for place in (tmp_path, folders))
    assert kept["measures"] == before["measures"]


def test_without_a_record_the_original_must_be_named(folders, tmp_path):
    _, failed = compared(tmp_path, folders / "gptq")
    assert isinstance(failed, BadRequest)
    assert "gptq was quantized from. Give --reference" in str(failed)
    text = ("--text", folders / "text.txt")
    rows, failed = compared(tmp_path, folders / "gptq", "--reference", folders / "model", *text)
    assert failed is None
    assert rows["gptq"]["best"]


@pytest.mark.parametrize("wrong", ["empty", "damaged.gguf", "nowhere/at/all"])
def test_what_is_no_checkpoint_is_refused_by_name(folders, tmp_path, wrong):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.gguf").write_bytes((folders / "gguf" / "model.gguf").read_bytes()[:200])
    _, failed = compared(tmp_path, folders / "gptq", tmp_path / wrong, "--reference", folders / "model")
    assert isinstance(failed, BadRequest)
    assert str(tmp_path / wrong) in str(failed)
    assert not (tmp_path / "compare.html").exists()
