"""Import believes nothing that the tensors do not bear out, and names what is wrong."""

import json

import pytest
import torch

import lowbit
from exchange.folders import checkpoint
from lowbit.core.errors import BadRequest
from lowbit.formats.files import write_tensors_atomically
from lowbit.formats.shards import read_tensors
from lowbit.recipes import optq, rtn

LAYER = "model.layers.0.mlp.up_proj"
RECIPES = {
    "gptq": rtn(bits=4, group_size=16, symmetric=True),
    "gptq_v2": optq(bits=3, group_size=16, act_order=True),
    "awq": rtn(bits=4, group_size=16),
    "compressed-tensors": rtn(bits=4, group_size=16),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of each format."""
    folders = {}
    for format, recipe in RECIPES.items():
        place = tmp_path_factory.mktemp(format)
        checkpoint(place / "own", recipe)
        lowbit.export(place / "own", place / "out", format)
        folders[format] = place / "out"
    return folders


def damaged(folder, to, tensors=None, settings=None):
    """A copy with other tensors of LAYER (None: missing) and other settings of the configuration."""
    to.mkdir()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings or {}
    (to / "config.json").write_text(json.dumps(config))
    held = read_tensors(folder / "model.safetensors")
    for field, change in (tensors or {}).items():
        value = held.pop(f"{LAYER}.{field}", None)
        if change is not None:
            held[f"{LAYER}.{field}"] = change(value)
    write_tensors_atomically(to / "model.safetensors", held, {"format": "pt"})
    return to


def with_value(value, place=0):
    def change(tensor):
        changed = tensor.clone()
        changed.view(-1)[place] = value
        return changed

    return change


ATTACKS = {
    "g_idx beyond the groups": (
        "gptq_v2",
        {"g_idx": with_value(4)},
        {},
        "from 0 to 4, but there are 4 groups",
    ),
    "g_idx below 0": ("gptq_v2", {"g_idx": with_value(-1)}, {}, "g_idx goes from -1"),
    "groups of unequal size": ("gptq_v2", {"g_idx": torch.zeros_like}, {}, "groups hold from 0 to 64 columns"),
    "act-order without g_idx": ("gptq_v2", {"g_idx": None}, {}, "desc_act is true, but tensor g_idx is missing"),
    "no scales": ("gptq", {"scales": None}, {}, "tensor scales is missing"),
    "no codes": ("gptq", {"qweight": None}, {}, "but no qweight"),
    "scales of NaN": ("awq", {"scales": with_value(float("nan"))}, {}, "not a finite positive number"),
    "scales of 0": ("compressed-tensors", {"weight_scale": with_value(0)}, {}, "not a finite positive number"),
    "zero points of another shape": ("gptq", {"qzeros": lambda t: t[:, 1:]}, {}, r"qzeros is torch.int32 \[4, 11\]"),
    "codes of another type": ("awq", {"qweight": lambda t: t.long()}, {}, "qweight is torch.int64"),
    "a wrapped zero point": ("gptq", {"qzeros": with_value(-1)}, {}, "stored as 15"),
    "bits that the tensors belie": ("gptq_v2", {}, {"bits": 8}, "."),
    "bits that no GPTQ has": ("gptq", {}, {"bits": "4"}, "bits is '4'"),
    "an unknown version": ("gptq", {}, {"checkpoint_format": "gptq_v3"}, "'gptq_v3'; lowbit reads gptq and gptq_v2"),
    "an unknown method": ("gptq", {}, {"quant_method": "magic"}, "'magic'; lowbit reads gptq, compressed-tensors, awq"),
    "another layout of AWQ": ("awq", {}, {"version": "gemv"}, "'gemv'"),
    "another format of the package": ("compressed-tensors", {}, {"format": "dense"}, "'dense'; lowbit reads pack-"),
    "no shape": ("compressed-tensors", {"weight_shape": None}, {}, "weight_shape is missing"),
    "a lying shape": ("compressed-tensors", {"weight_shape": with_value(96, 1)}, {}, "integers of no width"),
    "a shape of nothing": ("compressed-tensors", {"weight_shape": with_value(0, 1)}, {}, "weight_shape is"),
    "zero points left out": ("compressed-tensors", {"weight_zero_point": None}, {}, "without zero points"),
    "act-order of old": ("compressed-tensors", {"weight_g_idx": lambda _: torch.arange(64)}, {}, "weight_g_idx"),
    "codes and a dense weight": (
        "gptq",
        {"weight": lambda _: torch.ones(96, 64)},
        {},
        "weight, which is none of gptq's",
    ),
    "groups that are none": ("compressed-tensors", {}, {"config_groups": ["W4"]}, "config_groups must be an object"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_lying_checkpoint_is_refused_and_leaves_nothing(attack, exported, tmp_path):
    format, tensors, settings, message = ATTACKS[attack]
    bad = damaged(exported[format], tmp_path / "bad", tensors, settings)
    with pytest.raises(BadRequest, match=message):
        lowbit.import_(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plain_model_has_nothing_to_import(exported, tmp_path):
    folder = damaged(exported["gptq"], tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "quantization_config"}))
    with pytest.raises(BadRequest, match="nothing to import"):
        lowbit.import_(folder, tmp_path / "out")


def test_gptq_without_g_idx_has_groups_in_order(exported, tmp_path):
    folder = exported["gptq"]
    held = read_tensors(folder / "model.safetensors")
    bare = {name: tensor for name, tensor in held.items() if not name.endswith("g_idx")}
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((folder / "config.json").read_text())
    write_tensors_atomically(tmp_path / "bare" / "model.safetensors", bare, {})
    for source, out in ((folder, "with"), (tmp_path / "bare", "without")):
        lowbit.import_(source, tmp_path / out)
    files = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("with", "without")]
    assert files[0] == files[1]


def copied(folder, to):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def refused(folder, out, message):
    with pytest.raises(BadRequest, match=message):
        lowbit.import_(folder, out)
    assert not out.exists()


def test_files_of_different_versions_are_refused(exported, tmp_path):
    """config.json of version 2 beside the settings of version 1: which zero points are meant?"""
    folder = copied(exported["gptq_v2"], tmp_path / "mixed")
    settings = json.loads((folder / "quantize_config.json").read_text())
    (folder / "quantize_config.json").write_text(json.dumps(settings | {"checkpoint_format": "gptq"}))
    refused(folder, tmp_path / "out", "checkpoint_format 'gptq_v2', quantize_config.json says 'gptq'.*mixed")


def cut_short(data):
    return data[:-100]


def header_beyond_the_file(data):
    return (len(data) + 1).to_bytes(8, "little") + data[8:]


def another_shape(data):
    changed = data.replace(b'"I32","shape":[', b'"I32","shape":[9', 1)
    return (int.from_bytes(data[:8], "little") + 1).to_bytes(8, "little") + changed[8:]


def another_type(data):
    return data.replace(b'"I32"', b'"I12"', 1)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (cut_short, "cut short or extended"),
        (header_beyond_the_file, "claims a header of"),
        (another_shape, "but lies at"),
        (another_type, "type 'I12', which lowbit cannot read"),
    ],
)
@pytest.mark.parametrize("format", RECIPES)
def test_a_lying_header_is_refused(exported, format, lie, message, tmp_path):
    folder = copied(exported[format], tmp_path / "lying")
    path = folder / "model.safetensors"
    path.write_bytes(lie(path.read_bytes()))
    refused(folder, tmp_path / "out", message)


@pytest.mark.parametrize("format", RECIPES)
def test_nothing_is_imported_over_something(exported, format, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(BadRequest, match="not empty"):
        lowbit.import_(exported[format], tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"
