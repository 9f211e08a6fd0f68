"""The rotated recipes go the whole way, on layers that no tile fits: 44 inputs, 44 and 16 outputs, fused and not."""

from dataclasses import replace

import pytest
import torch
import transformers as T

import lowbit
from lowbit.codes import BitshiftTrellis, Levelled, Padded, TailBiting, VectorCodebook
from lowbit.core.errors import BadRequest
from lowbit.core.layer import quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.pipeline.quantize import Calibration
from lowbit.recipes import make_recipe
from lowbit.runtime import QuantizedLinear
from lowbit.runtime import product as product_module
from pipeline import tiny

RECIPES = {
    "quip": {"bits": 4},
    "quip_sharp": {"bits": 4, "passes": 1},
    "qtip": {"bits": 4, "L": 8},
    "exl3": {"bits": 4, "L": 8},
    "trellis": {"bits": 4, "L": 8},
}
IDS = torch.arange(40).view(2, 20) * 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        config = T.LlamaConfig(**(tiny.SIZES | {"intermediate_size": 44}))
        patch.setitem(tiny.CONFIGS, "llama of odd sizes", lambda: config)
        return tiny.save_tiny("llama of odd sizes", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", RECIPES)
def test_end_to_end(name, model, tmp_path):
    recipe = make_recipe(name, RECIPES[name])
    record = lowbit.quantize(model, tmp_path / "out", recipe, calibration=Calibration(samples=4, length=32))
    loaded = lowbit.load(tmp_path / "out", dtype=torch.float32)
    original = T.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected, got = original(IDS).logits, loaded(IDS).logits
        assert float((got - expected).norm() / expected.norm()) < 0.4
        for layer in record["layers"]:
            original.get_submodule(layer["name"]).weight.copy_(loaded.get_submodule(layer["name"]).dequantize())
        dense = original(IDS).logits
    assert torch.allclose(got, dense, atol=1e-3 * float(dense.abs().max()))
    assert all(layer["relative_loss"] < 0.05 for layer in record["layers"])


def test_a_strip_that_runs_over_the_outputs_is_decoded_slab_by_slab(monkeypatch):
    """44 outputs in tiles of 16 and of at most 16: the last slab is lower, and every slab finds its own codes."""
    trellis = BitshiftTrellis(6, 2, tile=(16, 4), values="gaussian")
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(44, 36, generator=generator), torch.randn(5, 36, generator=generator)
    problem = LayerProblem(weight, torch.eye(36, dtype=torch.float64))
    monkeypatch.setattr(product_module, "SLAB_BYTES", 4 * 36 * 16)
    for code in (
        TailBiting(trellis),
        Levelled(TailBiting(trellis)),
        Padded(TailBiting(replace(trellis, tile=(16, 5)))),
    ):
        recipe = replace(make_recipe("trellis"), code=code)
        layer = quantize_layer(problem, recipe, stream(0, "test"))
        assert torch.allclose(QuantizedLinear.from_layer(layer)(x), x @ layer.dequantize().T, atol=1e-4)


def test_codes_that_fit_their_sides_to_columns_are_not_padded():
    with pytest.raises(BadRequest, match=r"VectorCodebook.*E8P or a trellis"):
        Padded(VectorCodebook(5, 4))


def test_tiles_of_a_width_that_nobody_measured_are_refused():
    with pytest.raises(BadRequest, match="columns=3"):
        make_recipe("trellis", {"columns": 3})


def test_levelled_tiles_are_of_one_height():
    code = Levelled(TailBiting(BitshiftTrellis(16, 2, tile=(64, 4))))
    tiles = {n: code.at((n, 2**10)).tile for n in (32, 64, 65, 172, 640)}
    assert tiles == {32: (32, 8), 64: (64, 4), 65: (33, 8), 172: (58, 4), 640: (64, 4)}
