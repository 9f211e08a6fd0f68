"""Recipes with side-cars go the whole way: quantized, killed, resumed, loaded, generating; or refused as too large."""

import pytest
import torch
import transformers as T

import lowbit
from lowbit.core.errors import BadRequest
from lowbit.pipeline.journal import Journal
from lowbit.pipeline.quantize import Calibration, Options
from lowbit.recipes import make_recipe
from pipeline.tiny import contents, save_tiny

RECIPES = {
    "owq": {"bits": 4, "extra_bits": 0.6},
    "quantease_outlier": {"bits": 4, "turns": 2, "passes": 1},
    "spqr": {"bits": 4, "group_size": 16},
    "easyquant": {},
    "gwq": {"bits": 4},
    "squeezellm": {"bits": 4},
    "lorc": {"rank": 2, "metric": "hessian"},
    "lq_lora": {"bits": 4, "rank": 2, "turns": 2, "group_size": 16},
}
IDS = torch.arange(40).view(2, 20) * 5
CALIBRATION = Calibration(samples=4, length=32)


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama_biased", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", RECIPES)
def test_end_to_end(name, model, tmp_path):
    recipe = make_recipe(name, RECIPES[name])
    record = lowbit.quantize(model, tmp_path / "out", recipe, calibration=CALIBRATION)
    loaded = lowbit.load(tmp_path / "out", dtype=torch.float32)
    original = T.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected, got = original(IDS).logits, loaded(IDS).logits
        assert float((got - expected).norm() / expected.norm()) < 0.4
        for layer in record["layers"]:
            original.get_submodule(layer["name"]).weight.copy_(loaded.get_submodule(layer["name"]).dequantize())
        assert torch.allclose(got, original(IDS).logits, atol=1e-3 * float(expected.abs().max()))
    assert loaded.generate(IDS[:1], max_new_tokens=3, do_sample=False).shape == (1, 23)


def test_killed_and_resumed_gives_the_same_bytes(model, tmp_path, monkeypatch):
    """A run that takes turns dies as it finishes its fourth layer, and goes on."""
    recipe, write, lines = make_recipe("quantease_outlier", RECIPES["quantease_outlier"]), Journal.record, []
    lowbit.quantize(model, tmp_path / "whole", recipe, calibration=CALIBRATION)

    def dying(self, kind, name, data):
        lines.append(name)
        if len(lines) == 5:
            raise Killed
        write(self, kind, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "record", dying)
        with pytest.raises(Killed):
            lowbit.quantize(model, tmp_path / "out", recipe, calibration=CALIBRATION)
    lowbit.quantize(model, tmp_path / "out", recipe, calibration=CALIBRATION, options=Options(resume=True))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("owq", {"extra_bits": 20.0}, "extra_bits=20.*q_proj|q_proj.*extra_bits=20"),
        ("lorc", {"rank": 17}, "rank=17.*at most 16"),
        ("easyquant", {"fraction": 0.0001}, "fraction=0.0001"),
    ],
)
def test_budgets_that_do_not_fit_are_refused_before_anything_is_written(name, settings, message, model, tmp_path):
    with pytest.raises(BadRequest, match=message):
        lowbit.quantize(model, tmp_path / "out", make_recipe(name, settings), calibration=CALIBRATION)
    assert not (tmp_path / "out").exists()
