"""Recipes whose statistics look at more than a layer's inputs go the whole way, killed or not, on any architecture."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import lowbit
from lowbit.core.errors import LowbitError
from lowbit.core.recipe import Recipe
from lowbit.pipeline.quantize import Calibration, Options
from lowbit.recipes import make_recipe
from lowbit.statistics import CrossMoment, FirstTokens, GradientCovariance, TwoSided, WeightedMoment
from pipeline.killing import Killed, kill_at
from pipeline.tiny import contents, save_tiny

CALIBRATION = Calibration(samples=4, length=32)
IDS = torch.arange(40).view(2, 20) * 5


def two_sided(bits: int) -> Recipe:
    statistic = TwoSided(CrossMoment(), GradientCovariance())
    return replace(make_recipe("optq", {"bits": bits}), name="two-sided", statistic=statistic)


RECIPES = {
    "qronos": lambda bits: make_recipe("qronos", {"bits": bits}),
    "rsq": lambda bits: make_recipe("rsq", {"bits": bits}),
    "boa": lambda bits: make_recipe("boa", {"bits": bits, "refresh": "input"}),
    "two-sided": two_sided,
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("llama", name) for name in RECIPES),
        ("gpt2", "boa"),
        ("gemma2", "rsq"),
        ("mixtral", "qronos"),
        ("mixtral", "rsq"),
    ],
)
def test_end_to_end(kind, name, tmp_path):
    model = save_tiny(kind, tmp_path / "model")
    record = lowbit.quantize(model, tmp_path / "out", RECIPES[name](8), calibration=CALIBRATION)
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded = lowbit.load(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected, got = original(IDS).logits, loaded(IDS).logits
    assert float((got - expected).norm() / expected.norm()) < 0.05
    assert all(layer["relative_loss"] < 1e-3 for layer in record["layers"])
    assert {outcome["kind"] for layer in record["layers"] for outcome in layer["outcomes"]} <= {"few tokens"}


@pytest.mark.parametrize(("name", "line"), [("qronos", 10), ("boa", 4), ("two-sided", 11)])
def test_killed_and_resumed_gives_the_same_bytes(name, line, tmp_path, monkeypatch):
    model, settings = save_tiny("llama", tmp_path / "model"), {"calibration": CALIBRATION}
    lowbit.quantize(model, tmp_path / "whole", RECIPES[name](3), **settings)
    with monkeypatch.context() as patched:
        kill_at(patched, line, "before")
        with pytest.raises(Killed):
            lowbit.quantize(model, tmp_path / "out", RECIPES[name](3), **settings)
    torch.set_num_threads(2)
    try:
        lowbit.quantize(model, tmp_path / "out", RECIPES[name](3), **settings, options=Options(resume=True, budget=0))
    finally:
        torch.set_num_threads(1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_experts_that_share_statistics_survive_a_kill(tmp_path, monkeypatch):
    model, settings = save_tiny("mixtral", tmp_path / "model"), {"calibration": Calibration(samples=1, length=16)}
    record = lowbit.quantize(model, tmp_path / "whole", two_sided(3), **settings)
    assert any(outcome["kind"] == "few tokens" for layer in record["layers"] for outcome in layer["outcomes"])
    with monkeypatch.context() as patched:
        kill_at(patched, 10, "before")
        with pytest.raises(Killed):
            lowbit.quantize(model, tmp_path / "out", two_sided(3), **settings)
    lowbit.quantize(model, tmp_path / "out", two_sided(3), **settings, options=Options(resume=True))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_several_statistics_of_the_same_tokens_take_one_pass(tmp_path, monkeypatch):
    """Query, key and value share an input: three recipes on them run each batch of the first stage once."""
    from lowbit.pipeline.observe import Watched

    model, observe, runs = save_tiny("llama", tmp_path / "model"), Watched.observe, []
    monkeypatch.setattr(
        Watched,
        "observe",
        lambda self, batch, names, needed: (runs.append(names), observe(self, batch, names, needed))[1],
    )
    overrides = {"*k_proj": make_recipe("qronos"), "*v_proj": make_recipe("rsq")}
    targets = ["*.0.*q_proj", "*.0.*k_proj", "*.0.*v_proj"]
    mixed = lowbit.quantize(
        model, tmp_path / "out", "optq", overrides=overrides, targets=targets, calibration=CALIBRATION
    )
    assert len(runs) == 1
    for name, recipe in {"q_proj": "optq", "k_proj": "qronos", "v_proj": "rsq"}.items():
        out = tmp_path / name
        alone = lowbit.quantize(model, out, recipe, targets=[f"*.0.*{name}"], calibration=CALIBRATION)
        found = next(layer for layer in mixed["layers"] if layer["name"].endswith(name))
        assert found["loss"] == alone["layers"][0]["loss"]


def test_qronos_leaves_the_first_layers_to_optq(tmp_path):
    """Nothing is quantized before them: their inputs are those of the original model."""
    model = save_tiny("llama", tmp_path / "model")
    losses = {}
    settings = {"bits": 3, "act_order": True, "static_groups": True}
    for name in ("optq", "qronos"):
        recipe = make_recipe(name, settings)
        record = lowbit.quantize(model, tmp_path / name, recipe, calibration=CALIBRATION)
        losses[name] = [layer["loss"] for layer in record["layers"]]
    assert losses["qronos"][:3] == losses["optq"][:3]
    assert losses["qronos"][3] != losses["optq"][3]


def test_strict_runs_end_where_no_token_is_important(tmp_path, monkeypatch):
    monkeypatch.setattr(FirstTokens, "of", lambda self, seen: torch.zeros(len(seen["places"]), dtype=torch.float64))
    model = save_tiny("llama", tmp_path / "model")
    recipe = replace(make_recipe("optq"), statistic=WeightedMoment(FirstTokens(3)))
    record = lowbit.quantize(model, tmp_path / "out", recipe, calibration=CALIBRATION)
    assert all(
        {"no importance", "no signal"} == {outcome["kind"] for outcome in layer["outcomes"]}
        for layer in record["layers"]
    )
    with pytest.raises(LowbitError, match=r"q_proj.*--strict: 128 of 128 tokens.*Use another importance"):
        lowbit.quantize(model, tmp_path / "strict", recipe, calibration=CALIBRATION, options=Options(strict=True))


def test_gradients_that_are_not_finite_name_layer_and_windows(tmp_path, monkeypatch):
    from lowbit.core.errors import BadRequest
    from lowbit.pipeline import gradients

    cross_entropy = gradients.nn.functional.cross_entropy
    monkeypatch.setattr(gradients.nn.functional, "cross_entropy", lambda *a, **k: cross_entropy(*a, **k) * float("inf"))
    model = save_tiny("llama", tmp_path / "model")
    with pytest.raises(BadRequest, match=r"layers\.0.*gradients hold NaN or Inf in one of the windows 0 to 3"):
        lowbit.quantize(model, tmp_path / "out", two_sided(4), calibration=CALIBRATION)
