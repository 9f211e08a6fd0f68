"""The vLLM plug-in: parts of joined layers load by name and part, compute what lowbit does, and gaps are refused."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import lowbit
from integrations import fake_vllm
from integrations.checkpoints import quantize_in_place, tiny_model, write_checkpoint
from integrations.fake_vllm import REGISTERED, LinearBase
from lowbit.core.errors import BadRequest
from lowbit.formats.shards import Shards

INSTALLED = importlib.util.find_spec("vllm") is not None
ROOT = Path(__file__).parents[2]
ATTENTION = "model.layers.0.self_attn"
JOINED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@pytest.fixture(scope="module")
def plugin():
    """The module, imported over the fake where vLLM is not there; in a test of its own it meets the real one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
            patch.delitem(sys.modules, name)
        fake_vllm.install()
        import lowbit.integrations.vllm as plugin

        yield plugin
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """q, k and v have three recipes; up is left as it is."""
    model, folder = tiny_model("llama"), tmp_path_factory.mktemp("vllm") / "checkpoint"
    layers = quantize_in_place(model)
    for name in [name for name in layers if name.endswith("up_proj")]:
        del layers[name]
    write_checkpoint(folder, model, layers)
    return folder


@pytest.fixture
def config(plugin, folder):
    plugin.register()
    kind = REGISTERED["lowbit"]
    config = kind.from_config(json.loads((folder / "config.json").read_text())["quantization_config"])
    config.packed_modules_mapping = JOINED
    return config


def built(config, name, outputs, inputs=48, **how):
    return LinearBase(inputs, outputs, config, name, torch.float32, **how)


def load(layer, folder, shards, leave=""):
    """Every stored tensor of the parts, in the order of the file."""
    held = Shards.open(folder)
    for name in held.entries:
        part, _, field = name.rpartition(".")
        if part in shards and field != "bias" and name != leave:
            layer.load(field, held.load(name), shards[part])
    layer.quant_method.process_weights_after_loading(layer)


QKV = {f"{ATTENTION}.{letter}_proj": letter for letter in "qkv"}
CASES = {
    "three recipes in one layer": (f"{ATTENTION}.qkv_proj", [48, 24, 24], 48, QKV),
    "a part that is not quantized": (
        "model.layers.0.mlp.gate_up_proj",
        [80, 80],
        48,
        {"model.layers.0.mlp.gate_proj": 0, "model.layers.0.mlp.up_proj": 1},
    ),
    "a layer of its own": ("model.layers.1.mlp.down_proj", [48], 80, {"model.layers.1.mlp.down_proj": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_joined_layer_computes_what_its_parts_do(case, config, folder):
    name, outputs, inputs, shards = CASES[case]
    layer = built(config, name, outputs, inputs)
    load(layer, folder, shards)
    x, model = torch.randn(3, inputs), lowbit.load(folder)
    parts = [model.get_submodule(part) for part in shards]
    expected = torch.cat([part(x) - (0 if part.bias is None else part.bias) for part in parts], dim=-1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)
    layer.bias = torch.linspace(-1, 1, sum(outputs))
    torch.testing.assert_close(layer(x), expected + layer.bias, rtol=0, atol=1e-6)
    assert not list(layer.parameters())
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))


def test_a_tensor_that_did_not_come_is_named(config, folder):
    missing = f"{ATTENTION}.k_proj.scale"
    with pytest.raises(BadRequest, match=missing.replace(".", r"\.")):
        load(built(config, f"{ATTENTION}.qkv_proj", [48, 24, 24]), folder, QKV, leave=missing)


def test_a_tensor_of_another_shape_is_refused(config):
    layer = built(config, f"{ATTENTION}.qkv_proj", [48, 24, 24])
    with pytest.raises(BadRequest, match=r"k_proj\.weight.*\[3\], not"):
        layer.load("weight", torch.zeros(3, dtype=torch.uint8), "k")


def test_cutting_codes_over_devices_is_refused(config):
    with pytest.raises(BadRequest, match="--tensor-parallel-size 1"):
        built(config, f"{ATTENTION}.qkv_proj", [48, 24, 24], parallel=2)


def test_a_model_of_another_shape_is_refused(config):
    with pytest.raises(BadRequest, match=r"k_proj' is \[48, 48\] in vLLM but \[24, 48\]"):
        built(config, f"{ATTENTION}.qkv_proj", [48, 48, 24])


def test_layers_that_are_not_quantized_are_vllms_own(config):
    assert isinstance(
        built(config, "model.layers.0.mlp.other_proj", [8]).quant_method, fake_vllm.UnquantizedLinearMethod
    )
    assert config.get_quant_method(nn.Embedding(2, 2), "model.embed_tokens") is None


def test_quantized_layers_inside_what_is_no_linear_layer_are_refused(config):
    with pytest.raises(BadRequest, match=r"vLLM has ModuleList where the checkpoint quantizes model\.layers\.0"):
        config.get_quant_method(nn.ModuleList(), "model.layers.0.mlp")


def test_vllm_finds_the_plugin_by_the_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"lowbit": "lowbit.integrations.vllm:register"}


@pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed; tests above use a fake of its interface")
def test_vllm_itself_loads_the_folder(folder):
    command = [sys.executable, ROOT / "benchmarks" / "interop" / "vllm_plugin.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
