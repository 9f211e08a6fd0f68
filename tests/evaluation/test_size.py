"""Sizes of checkpoints, counted from their headers."""

import json

import pytest
import torch

from lowbit import recipes
from lowbit.core.errors import BadRequest
from lowbit.core.layer import quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.evaluation.size import byte_budget, checkpoint_size
from lowbit.formats.checkpoint import quantization_config, stored_tensors
from lowbit.formats.files import write_tensors_atomically
from lowbit.recipes.serial import to_dict

SHAPE = (24, 64)


@pytest.fixture
def folder(tmp_path):
    """One quantized layer with a bias, and one norm that stayed."""
    recipe = recipes.rtn(bits=3, group_size=32)
    layer = quantize_layer(LayerProblem(torch.randn(SHAPE, generator=stream(0, "w")), torch.eye(64)), recipe, stream(0))
    tensors = {f"a.fc.{name}": tensor for name, tensor in stored_tensors(layer).items()}
    tensors |= {"a.fc.bias": torch.zeros(24), "a.norm.weight": torch.ones(64, dtype=torch.bfloat16)}
    write_tensors_atomically(tmp_path / "model.safetensors", tensors, {})
    config = {"quantization_config": quantization_config({"a.fc": (to_dict(recipe), SHAPE)}, "0.1.0")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_bits_per_weight_count_all_that_the_layer_stores(folder):
    size = checkpoint_size(folder)
    stored = 24 * 64 * 3 // 8 + sum(
        tensor.nbytes
        for name, tensor in _tensors(folder).items()
        if name.startswith("a.fc.") and name not in ("a.fc.weight", "a.fc.bias")
    )
    assert size.bits_per_weight == pytest.approx(8 * stored / (24 * 64))
    assert 3 < size.bits_per_weight < 5


def test_parameters_are_those_before_quantization(folder):
    size = checkpoint_size(folder)
    assert size.parameters == 24 * 64 + 24 + 64
    assert size.bytes == (folder / "model.safetensors").stat().st_size
    assert size.bits_per_parameter == 8 * size.bytes / size.parameters


def test_other_tools_formats_are_not_guessed_at(folder):
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert checkpoint_size(folder) is None


def test_a_damaged_quantization_config_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["layers"]["a.fc"]["recipe"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadRequest, match="recipe 7"):
        checkpoint_size(folder)


def _tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_budget_counts_every_byte_by_part(folder):
    budget = byte_budget(folder)
    assert budget[0] == {"part": "codes", "field": "codes", "bytes": 24 * 64 * 3 // 8}
    assert {(entry["part"], entry["field"]) for entry in budget[1:]} == {
        ("not quantized", "a.norm.weight"),
        ("not quantized", "a.fc.bias"),
        ("code", "scale"),
        ("code", "zero"),
    }
    assert sum(entry["bytes"] for entry in budget) == sum(tensor.nbytes for tensor in _tensors(folder).values())
    assert next(entry["bytes"] for entry in budget if entry["field"] == "scale") == 24 * 2 * 2


def test_budget_adds_up_blocks(tmp_path):
    tensors = {f"model.layers.{i}.norm.weight": torch.ones(8) for i in range(3)}
    write_tensors_atomically(tmp_path / "model.safetensors", tensors, {})
    (tmp_path / "config.json").write_text("{}")
    assert byte_budget(tmp_path) == [{"part": "not quantized", "field": "model.layers.*.norm.weight", "bytes": 96}]
