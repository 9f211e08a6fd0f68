"""Every architecture goes the whole way: find, quantize, write, load, and the loaded model says what the run said."""

import functools

import pytest
import torch
from transformers import AutoModelForCausalLM

import lowbit
from lowbit.core.errors import BadRequest
from lowbit.pipeline.quantize import Calibration
from lowbit.pipeline.source import SourceModel
from pipeline.tiny import CONFIGS, save_tiny

CALIBRATION = Calibration(samples=4, length=32)
IDS = torch.arange(40).view(2, 20) * 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of the tiny model of a kind, written once."""
    return functools.cache(lambda kind: save_tiny(kind, tmp_path_factory.mktemp(kind)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_end_to_end(kind, saved, tmp_path):
    model = saved(kind)
    recipe = lowbit.recipes.optq(bits=8, group_size=8)
    record = lowbit.quantize(model, tmp_path / "out", recipe, calibration=CALIBRATION)
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded = lowbit.load(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected, got = original(IDS).logits, loaded(IDS).logits
    assert float((got - expected).norm() / expected.norm()) < 0.05
    assert not torch.equal(got, expected)
    assert all(layer["relative_loss"] < 1e-3 for layer in record["layers"])


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_linear_layer_in_the_blocks_is_found(kind, saved):
    source = SourceModel.open(str(saved(kind)))
    found = sum(p.numel() for block in source.blocks for _, m in block.linears() for p in [m.weight])
    inside = sum(p.numel() for block in source.blocks for p in block.module.parameters() if p.ndim > 1)
    routers = sum(p.numel() for n, p in source.model.named_parameters() if n.endswith("mlp.gate.weight"))
    assert found + routers == inside


def test_blocks_run_alone_give_what_the_whole_model_gives(saved, tmp_path):
    """The last hidden states of the driver, without any quantization error to hide a wrong mask or position."""
    for kind in ("gemma3", "qwen2", "gpt2", "opt", "mixtral"):
        model = save_tiny(kind, tmp_path / kind)
        last = r"re:.*\.0\..*(down_proj|fc2|c_proj)"
        record = lowbit.quantize(model, tmp_path / f"{kind}-out", lowbit.recipes.rtn(), targets=[last])
        assert record["check"]["max_logit_difference"] < 1e-4


def test_experts_that_see_too_few_tokens_use_the_statistic_of_all_and_say_so(saved, tmp_path):
    small = Calibration(samples=1, length=16)
    record = lowbit.quantize(saved("mixtral"), tmp_path / "out", lowbit.recipes.optq(), calibration=small)
    kinds = {layer["name"]: [outcome["kind"] for outcome in layer["outcomes"]] for layer in record["layers"]}
    experts = {name: found for name, found in kinds.items() if ".experts." in name}
    assert experts
    assert all("few tokens" in found for found in experts.values())
    assert not any("few tokens" in found for name, found in kinds.items() if "self_attn" in name)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_some_experts_may_be_left_alone(kind, saved, tmp_path):
    model = saved(kind)
    lowbit.quantize(model, tmp_path / "out", lowbit.recipes.rtn(bits=8), ignore=["*experts.1.*"])
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded = lowbit.load(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected, got = original(IDS).logits, loaded(IDS).logits
    assert float((got - expected).norm() / expected.norm()) < 0.05


def test_a_model_without_a_list_of_blocks_is_refused_with_what_was_found(tmp_path):
    from lowbit.pipeline.architecture import find_blocks

    model = torch.nn.ModuleDict({"stack": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    with pytest.raises(BadRequest, match=r"no list of 3 decoder blocks.*stack \(1\)"):
        find_blocks(model, 3)


def test_refreshing_inputs_once_a_block_is_another_result(saved, tmp_path):
    losses = []
    for refresh in ("input", "block"):
        recipe = lowbit.recipes.optq(bits=2, refresh=refresh)
        record = lowbit.quantize(saved("llama"), tmp_path / refresh, recipe, calibration=CALIBRATION)
        losses.append({layer["name"]: layer["loss"] for layer in record["layers"]})
    first, second = (list(found.values()) for found in losses)
    assert first[:3] == second[:3]  # query, key and value see the same inputs either way
    assert first[3] != second[3]
