"""Rounding again: only where a format cannot hold what there is, only if asked for, and never unsaid."""

import json

import pytest
import torch
from transformers import LlamaConfig
from typer.testing import CliRunner

import lowbit
from exchange.folders import CONFIG, checkpoint, solved
from exchange.test_gguf import with_tokenizer
from lowbit.cli.app import app
from lowbit.core.errors import BadRequest
from lowbit.exchange.catalogue import objection
from lowbit.exchange.requantize import Requantize
from lowbit.recipes import lorc, optq, rsq, rtn, trellis

ROTATED, PLAIN = trellis(bits=3, L=10), rtn(bits=4, group_size=32, symmetric=True)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder of which no format holds all, and a text."""
    place = tmp_path_factory.mktemp("mixed")
    checkpoint(place / "own", ROTATED, PLAIN)
    with_tokenizer(place / "own")
    (place / "text.txt").write_text("the other moth thinks that this is that " * 40)
    return place


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def test_a_refusal_mentions_it(mixed, tmp_path):
    with pytest.raises(BadRequest, match="--requantize BITS"):
        lowbit.export(mixed / "own", tmp_path / "out", "gptq")


@pytest.mark.parametrize(("format", "bits"), [("gptq", 4), ("compressed-tensors", 8), ("awq", 4), ("gguf", 5)])
def test_the_cost_is_measured_and_told(format, bits, mixed, tmp_path):
    text = mixed / "text.txt"
    done = lowbit.export(mixed / "own", tmp_path / "out", format, requantize=bits, text=str(text), windows=2)
    assert (done["layers"], done["requantized"]) == (7, 4)
    divergence = done["measures"]["divergence"]
    assert 0 < divergence["kl"]["mean"] < 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "4 layers that do not fit were rounded a second time" in card
    assert "perplexity of the folder exported" in card
    assert f"--requantize {bits}" in card
    assert "exactly the same codes" not in card


def test_layers_that_fit_are_left_alone(mixed, tmp_path):
    lowbit.export(mixed / "own", tmp_path / "out", "gguf", requantize=6, text=str(mixed / "text.txt"), windows=1)
    lowbit.import_(tmp_path / "out", tmp_path / "back")
    own, back = (lowbit.load(folder, dtype=torch.float32) for folder in (mixed / "own", tmp_path / "back"))
    own.dequantize(), back.dequantize()
    same = {name for name, tensor in back.state_dict().items() if torch.equal(tensor, own.state_dict()[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in own.state_dict() if name not in same} == {
        "q_proj",
        "v_proj",
        "gate_proj",
        "down_proj",
    }


def test_where_everything_fits_nothing_is_rounded(tmp_path):
    checkpoint(tmp_path / "own", PLAIN)
    done = lowbit.export(tmp_path / "own", tmp_path / "out", "gptq", requantize=3)
    assert done["requantized"] == 0
    assert "exactly the same codes" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_shows_the_cost(mixed, tmp_path):
    out = ("export", mixed / "own", "--format", "gguf", "--requantize", 4, "--text", mixed / "text.txt", "--out")
    shown = run(*out, tmp_path / "shown")
    assert "4 layers rounded again" in shown.stdout
    assert "KL to the reference" in shown.stdout
    assert json.loads(run(*out, tmp_path / "json", "--json").stdout)["requantized"] == 4


@pytest.mark.parametrize(
    ("format", "bits", "message"),
    [("awq", 3, "awq has no grid of 3 bits"), ("gptq", 5, "Use 2, 3, 4, 8"), ("exl3", 4, "Nothing can be rounded")],
)
def test_bits_that_a_format_has_not(format, bits, message, mixed, tmp_path):
    with pytest.raises(BadRequest, match=message):
        lowbit.export(mixed / "own", tmp_path / "out", format, requantize=bits, text=str(mixed / "text.txt"))
    assert not (tmp_path / "out").exists()


def test_a_layer_that_does_not_fit_rounded_either(tmp_path):
    checkpoint(tmp_path / "own", ROTATED, config=LlamaConfig(**CONFIG.to_dict() | {"intermediate_size": 72}))
    with_tokenizer(tmp_path / "own")
    with pytest.raises(BadRequest, match=r"down_proj.*72 inputs"):
        lowbit.export(tmp_path / "own", tmp_path / "out", "gguf", requantize=4)
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_not_there_is_found_before_anything_is_written(mixed, tmp_path):
    with pytest.raises(BadRequest):
        lowbit.export(mixed / "own", tmp_path / "out", "gptq", requantize=4, text=str(tmp_path / "none.txt"))
    assert not (tmp_path / "out").exists()


ODD = {"rotated": (rsq(bits=2), 2), "beside": (lorc(bits=3, rank=2), 3), "act-order": (optq(3, 16, act_order=True), 3)}


@pytest.mark.parametrize("format", ["gptq", "gptq_v2", "compressed-tensors", "gguf"])
@pytest.mark.parametrize("case", ODD)
def test_what_is_rounded_fits_and_is_near(case, format):
    """Weights in their own coordinates, with all that was kept beside the codes."""
    recipe, bits = ODD[case]
    layer = solved(torch.randn(32, 256, generator=torch.Generator().manual_seed(1)), recipe)
    again = Requantize.into(format, 8, [layer.shape]).layer(layer)
    assert objection(format, again) is None
    error = (again.dequantize() - layer.dequantize()).norm() / layer.dequantize().norm()
    assert error < 0.01
    coarse = Requantize.into(format, bits, [layer.shape]).layer(layer)
    assert objection(format, coarse) is None
    assert (coarse.dequantize() - layer.dequantize()).norm() > 5 * error * layer.dequantize().norm()
