"""Other tools' formats on the command line, and the card that every folder carries."""

import json

import pytest
from typer.testing import CliRunner

import lowbit
from lowbit.cli.app import app
from lowbit.core.errors import BadRequest
from lowbit.report.card import card as card_of
from pipeline.tiny import save_tiny


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, its quantization, and that exported and imported again."""
    place = tmp_path_factory.mktemp("folders")
    save_tiny("llama", place / "model")
    (place / "model" / "README.md").write_text("The card of the model itself.")
    settings = {"bits": 4, "group_size": 16, "symmetric": True}
    lowbit.quantize(place / "model", place / "own", lowbit.recipes.rtn(**settings))
    assert run("export", place / "own", "--format", "awq", "--out", place / "awq").exit_code == 0
    assert run("import", place / "awq", "--out", place / "back").exit_code == 0
    return place


def test_export_prints_json_and_nothing_else(folders, tmp_path):
    found = run("export", folders / "own", "--format", "gptq", "--out", tmp_path / "out", "--json")
    assert json.loads(found.stdout)["layers"] == 14


def test_a_request_that_cannot_be_met_is_one(folders, tmp_path):
    found = run("export", folders / "own", "--format", "exl9", "--out", tmp_path / "out")
    assert isinstance(found.exception, BadRequest)


def test_eval_reads_the_folders_of_other_tools(folders, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    found = {}
    for name in ("own", "awq", "back"):
        done = run("eval", folders / name, "--text", text, "--windows", 2, "--reference", folders / "own", "--json")
        found[name] = json.loads(done.stdout)
    for name in ("awq", "back"):
        assert found[name]["perplexity"] == found["own"]["perplexity"]
        assert found[name]["divergence"]["kl"]["mean"] == 0


def test_every_folder_carries_a_card(folders):
    own, awq, back = ((folders / name / "README.md").read_text() for name in ("own", "awq", "back"))
    for card in (own, awq, back):
        assert card.startswith("---\nlibrary_name: transformers\n")
        assert "The card of the model itself" not in card
        assert "## Make it again" in card
    assert "lowbit.load(" in own
    assert "`rtn`" in own
    assert "stored as awq: exactly the same codes" in awq
    assert f"lowbit export {folders / 'own'} --format awq" in awq
    assert "AutoModelForCausalLM" in awq
    assert "lowbit import" in back


def test_a_card_links_to_the_base_model_and_shows_what_was_measured():
    card = card_of(RECORD)
    assert 'base_model: "maker/Model-1B"\nbase_model_relation: quantized' in card
    assert "[maker/Model-1B](https://huggingface.co/maker/Model-1B)" in card
    assert "| KL divergence from it, nats a token | 0.0310 ± 0.0020 |" in card
    assert "@article{one}" in card


RECORD = {
    "lowbit_version": "0.1.0",
    "model": {"source": "maker/Model-1B"},
    "recipe_name": "optq",
    "command": "lowbit quantize maker/Model-1B --out out",
    "size": {"before": 2_000_000, "after": 500_000, "bits_per_weight": 4.25},
    "citations": ["@article{one}"],
    "measures": {
        "text": "stdlib",
        "windows": 4,
        "length": 64,
        "perplexity": {"mean": 11.0, "error": 0.1},
        "divergence": {
            "perplexity": {"mean": 10.0, "error": 0.1},
            "kl": {"mean": 0.031, "error": 0.002},
            "agreement": {"mean": 0.9, "error": 0.01},
        },
    },
}
