"""lowbit's own format: what is stored is what is loaded, and the bytes of version 1 never change."""

import json
from dataclasses import replace

import pytest
import torch

from formats.samples import LAYER, RECIPE, SHAPE, config, tiny_layer, write_checkpoint
from lowbit.core.errors import BadRequest, LowbitError
from lowbit.core.fields import Bits, bits_per_weight
from lowbit.core.layer import quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.formats import (
    check_checkpoint,
    parse_quantization_config,
    quantization_config,
    restored_layer,
    stored_layout,
    stored_tensors,
)
from lowbit.packing import pack
from lowbit.recipes import from_dict, optq, rtn, to_dict
from lowbit.transforms import (
    ActOrder,
    Chain,
    ChannelScales,
    RandomizedHadamard,
    RandomKronecker,
    Rescale,
    StaticOrder,
)

RECIPES = {
    f"{make.__name__} {settings}": make(**settings)
    for make, settings in [
        (rtn, {"bits": 1, "symmetric": True}),
        (rtn, {"bits": 8, "group_size": "tensor"}),
        (optq, {"bits": 2, "group_size": 9}),
        (optq, {"bits": 3, "group_size": 3, "act_order": True}),
        (optq, {"bits": 5, "group_size": 9, "act_order": True, "static_groups": True, "symmetric": True}),
    ]
}


TRANSFORMS = {
    "random Kronecker": RandomKronecker(),
    "signs and scales of both sides": Chain((ChannelScales(), RandomizedHadamard(), ActOrder())),
    "one side": Chain((Rescale(), RandomizedHadamard(sides="right"), StaticOrder())),
}
RECIPES |= {name: replace(optq(bits=3), transform=transform) for name, transform in TRANSFORMS.items()}


def solved(recipe):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 27, generator=generator)
    problem = LayerProblem(torch.randn(5, 27, generator=generator), (x.T @ x / 64).double())
    return quantize_layer(problem, recipe, stream(0, "layer"))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_layer_is_restored_bit_for_bit(recipe):
    layer = solved(recipe)
    stored = stored_tensors(layer)
    again = restored_layer(recipe, layer.shape, stored)
    assert torch.equal(again.codes.long(), layer.codes.long())
    assert torch.equal(again.dequantize(), layer.dequantize())
    twice = stored_tensors(again)
    assert all(
        torch.equal(twice[name], tensor) and twice[name].dtype == tensor.dtype for name, tensor in stored.items()
    )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_what_is_stored_is_what_the_layout_and_the_bits_per_weight_say(recipe):
    stored = stored_tensors(solved(recipe))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()} == stored_layout(
        recipe, (5, 27)
    )
    assert stored["weight"].dtype == torch.uint8
    assert stored["weight"].dim() == 1
    bits = 8 * sum(tensor.nbytes for tensor in stored.values()) / (5 * 27)
    assert bits == bits_per_weight(recipe.fields((5, 27)), (5, 27))


def test_a_value_that_would_change_by_being_stored_is_an_error():
    layer = tiny_layer()
    for value in (1 / 3, torch.nan, 1e6):
        side = {**layer.side, "scale": torch.full_like(layer.side["scale"], value)}
        with pytest.raises(LowbitError, match="scale"):
            stored_tensors(replace(layer, side=side))
    for zero in (layer.side["zero"] + 0.5, layer.side["zero"] + 1, layer.side["zero"] - 1, layer.side["zero"][1:]):
        with pytest.raises(LowbitError):
            stored_tensors(replace(layer, side={**layer.side, "zero": zero}))
    with pytest.raises(LowbitError, match=r"scale: \[5, 6\]"):
        stored_tensors(replace(layer, side={**layer.side, "scale": layer.side["scale"].T}))


def test_a_missing_or_misshapen_tensor_is_named():
    stored = stored_tensors(tiny_layer())
    with pytest.raises(BadRequest, match="zero is missing"):
        restored_layer(RECIPE, SHAPE, {name: tensor for name, tensor in stored.items() if name != "zero"})
    with pytest.raises(BadRequest, match=r"weight is torch.uint8 \[47\].*\[48\]"):
        restored_layer(RECIPE, SHAPE, {**stored, "weight": stored["weight"][1:]})
    with pytest.raises(BadRequest, match=r"scale is torch.float32.*torch.float16"):
        restored_layer(RECIPE, SHAPE, {**stored, "scale": stored["scale"].float()})


def test_the_bytes_of_version_1_are_fixed(tmp_path):
    # A change here breaks every checkpoint out there: raise FORMAT_VERSION instead.
    assert write_checkpoint(tmp_path) == "691be1ac585dc3c454fcaee47643dddde6b377163a9a9348f47eccfd2ed6b83e"
    stored = stored_tensors(tiny_layer())
    assert bytes(stored["weight"][:8].tolist()).hex() == "a8ce78a8ce78a80e"
    check_checkpoint(tmp_path, from_dict)


def test_the_worked_example_of_the_specification():
    packed = pack(torch.tensor([[1, 2, 3, 4, 5]]), Bits((1, 5), 3))
    assert bytes(packed.tolist()) == bytes.fromhex("d158")


def test_config_round_trips_and_names_each_recipe_once():
    four, three = to_dict(rtn(bits=4)), to_dict(RECIPE)
    written = quantization_config(
        {"a": (four, (2, 3)), "b": (three, SHAPE), "c": (to_dict(rtn(bits=4)), (4, 3))}, "0.1"
    )
    assert written["recipes"] == [four, three]
    parsed = parse_quantization_config(json.loads(json.dumps(written)))
    assert parsed.layers_with(from_dict) == {
        "a": (rtn(bits=4), (2, 3)),
        "b": (RECIPE, SHAPE),
        "c": (rtn(bits=4), (4, 3)),
    }
    assert parsed.lowbit_version == "0.1"


def test_a_newer_version_is_told_apart_from_a_broken_one():
    data = config()["quantization_config"]
    with pytest.raises(BadRequest, match=r"written by a newer lowbit \(9.0\).*Upgrade"):
        parse_quantization_config({**data, "format_version": 2, "lowbit_version": "9.0"})
    with pytest.raises(BadRequest, match="format_version is '1'"):
        parse_quantization_config({**data, "format_version": "1"})
    # A newer version may say anything else in any other way.
    with pytest.raises(BadRequest, match="Upgrade"):
        parse_quantization_config({"quant_method": "lowbit", "format_version": 2, "lowbit_version": "9.0"})


def test_the_dense_name_holds_something_a_dense_loader_must_refuse():
    dense = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    with pytest.raises(RuntimeError, match="size mismatch"):
        dense.load_state_dict({"weight": stored_tensors(tiny_layer())["weight"]})
    assert LAYER in config()["quantization_config"]["layers"]
