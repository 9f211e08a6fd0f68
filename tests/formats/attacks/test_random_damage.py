"""Random damage: a damaged folder is refused by a BadRequest or is another legal folder, and nothing else happens."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.samples import config, write_checkpoint
from lowbit.core.errors import BadRequest
from lowbit.formats import Shards, check_checkpoint, read_quantization_config, restored_layer
from lowbit.recipes import from_dict

flips = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4)
leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(leaf, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    write_checkpoint(folder)
    return folder


def damaged(content: bytes, flips: list[tuple[int, int]], keep: int) -> bytes:
    changed = bytearray(content)
    for place, mask in flips:
        changed[place % len(changed)] ^= mask
    return bytes(changed[: len(changed) - keep])


def load_everything(folder):
    """Load all tensors and, where the checkpoint is legal, all layers; return silently where it is refused."""
    try:
        shards = Shards.open(folder)
        for name, entry in shards.entries.items():
            tensor = shards.load(name)
            assert (tuple(tensor.shape), tensor.dtype, tensor.nbytes) == (entry.shape, entry.dtype, entry.nbytes)
        check_checkpoint(folder, from_dict)
    except BadRequest:
        return
    for layer, (recipe, shape) in read_quantization_config(folder).layers_with(from_dict).items():
        names = [name for name in shards.entries if name.startswith(f"{layer}.")]
        stored = {name.removeprefix(f"{layer}."): shards.load(name) for name in names}
        weight = restored_layer(recipe, shape, stored).dequantize()
        assert weight.shape == shape
        assert bool(torch.isfinite(weight).all())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(flips=flips, keep=st.just(0) | st.integers(0, 2000))
def test_damaged_bytes_of_the_tensors(checkpoint, flips, keep):
    good = (checkpoint / "model.safetensors").read_bytes()
    try:
        (checkpoint / "model.safetensors").write_bytes(damaged(good, flips, keep))
        load_everything(checkpoint)
    finally:
        (checkpoint / "model.safetensors").write_bytes(good)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(flips=flips, keep=st.just(0) | st.integers(0, 2000))
def test_damaged_bytes_of_the_header(checkpoint, flips, keep):
    good = (checkpoint / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    try:
        (checkpoint / "model.safetensors").write_bytes(damaged(good[:header], flips, 0) + good[header:])
        load_everything(checkpoint)
    finally:
        (checkpoint / "model.safetensors").write_bytes(good)


def places(data, path=()):
    """The path of every value of nested JSON."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(place=st.sampled_from(places(config())[1:]), value=anything)
def test_any_value_replaced_in_the_config(checkpoint, place, value):
    changed = copy.deepcopy(config())
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    good = (checkpoint / "config.json").read_bytes()
    try:
        (checkpoint / "config.json").write_text(json.dumps(changed))
        load_everything(checkpoint)
    finally:
        (checkpoint / "config.json").write_bytes(good)
