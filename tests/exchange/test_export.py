"""Export: another tool's folder holds exactly the same weights, or there is no folder."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import lowbit
from exchange.folders import TOKENS, awq_weight, checkpoint, compressed_tensors_weight, gptq_weight
from lowbit.core.errors import BadRequest
from lowbit.formats.shards import Shards
from lowbit.recipes import lorc, optq, qronos, rtn, trellis

ORDERED = optq(bits=3, group_size=16, act_order=True)
CASES = {
    ("gptq", 2, "symmetric rows"): rtn(bits=2, symmetric=True),
    ("gptq", 4, "one scale"): rtn(bits=4, group_size="tensor", symmetric=True),
    ("gptq", 8, "symmetric groups"): optq(bits=8, group_size=16, symmetric=True),
    ("gptq", 3, "act-order, symmetric"): optq(bits=3, group_size=16, act_order=True, symmetric=True),
    ("gptq_v2", 2, "zero points of 0 and 3"): qronos(bits=2, group_size=16),
    ("gptq_v2", 3, "act-order, asymmetric"): ORDERED,
    ("gptq_v2", 4, "act-order, static groups"): optq(bits=4, group_size=16, act_order=True, static_groups=True),
    ("compressed-tensors", 2, "symmetric groups"): rtn(bits=2, group_size=16, symmetric=True),
    ("compressed-tensors", 3, "asymmetric groups"): optq(bits=3, group_size=32),
    ("compressed-tensors", 5, "symmetric rows"): optq(bits=5, symmetric=True, act_order=True),
    ("compressed-tensors", 8, "asymmetric rows"): rtn(bits=8),
    ("awq", 4, "asymmetric groups"): rtn(bits=4, group_size=32),
    ("awq", 4, "symmetric rows"): optq(bits=4, symmetric=True),
}


def dense(folder):
    model = lowbit.load(folder, dtype=torch.float32)
    model.dequantize()
    return model


def weight_in(format, bits, tensors):
    if format == "awq":
        return awq_weight(tensors)
    if format == "compressed-tensors":
        return compressed_tensors_weight(tensors, bits)
    return gptq_weight(tensors, bits, 1 if format == "gptq" else 2)


def layer_tensors(folder, layer):
    shards = Shards.open(folder)
    return {name.rpartition(".")[2]: shards.load(name) for name in shards.entries if name.startswith(f"{layer}.")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_codes_go_over_exactly_and_come_back(case, tmp_path):
    format, bits, _ = case
    layers = checkpoint(tmp_path / "own", CASES[case])
    done = lowbit.export(tmp_path / "own", tmp_path / "out", format)
    assert done["layers"] == len(layers)
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"):
        found = weight_in(format, bits, layer_tensors(tmp_path / "out", name))
        assert torch.equal(found, layers[name].dequantize())
    lowbit.import_(tmp_path / "out", tmp_path / "back")
    own, back = (dense(tmp_path / folder).state_dict() for folder in ("own", "back"))
    assert own.keys() == back.keys()
    assert all(torch.equal(own[name], back[name]) for name in own)


def test_everything_else_goes_over_untouched(tmp_path):
    checkpoint(tmp_path / "own", rtn(bits=4, group_size=32), None)
    lowbit.export(tmp_path / "own", tmp_path / "out", "gptq_v2")
    own, out = Shards.open(tmp_path / "own"), Shards.open(tmp_path / "out")
    rest = {name for name in own.entries if name.endswith("norm.weight") or "embed" in name or "k_proj" in name}
    assert all(torch.equal(own.load(name), out.load(name)) for name in rest)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "quantize_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {"modeling_lowbit.py", ".partial"} & names
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


def settings(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def test_gptq_names_layers_that_differ_and_layers_left_alone(tmp_path):
    layers = checkpoint(tmp_path / "own", ORDERED, ORDERED, rtn(bits=8), None)
    lowbit.export(tmp_path / "own", tmp_path / "out", "gptq_v2")
    found = settings(tmp_path / "out")
    assert (found["bits"], found["group_size"], found["desc_act"], found["sym"]) == (3, 16, True, False)
    eight = {name for name, layer in layers.items() if layer.recipe.name == "rtn"}
    assert found["dynamic"].keys() >= {f"+:^{re.escape(name)}$" for name in eight}
    assert {} in found["dynamic"].values()
    assert found == json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    lowbit.import_(tmp_path / "out", tmp_path / "back")


SYMMETRIC = rtn(bits=4, group_size=32, symmetric=True)
READ = {
    "by layers that unpack themselves": ((SYMMETRIC,), False),
    "several widths": ((SYMMETRIC, optq(bits=3, symmetric=True), None, rtn(bits=6, symmetric=True)), False),
    "made dense at once": ((rtn(bits=4, group_size=32),), True),
}


@pytest.mark.parametrize("case", READ)
def test_transformers_reads_compressed_tensors(case, tmp_path):
    """The real consumer, transformers with the package compressed-tensors, has the same weights.

    Made dense at once, it multiplies codes and scales in float16 and takes the first config group for all layers;
    layers that unpack themselves do so in the model's type and cannot have zero points.
    """
    recipes, at_once = READ[case]
    checkpoint(tmp_path / "own", *recipes)
    lowbit.export(tmp_path / "own", tmp_path / "out", "compressed-tensors")
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if at_once else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, **how)
    ours = dense(tmp_path / "own")
    for name, tensor in ours.state_dict().items():
        tensor.copy_(tensor.half() if at_once and "_proj" in name else tensor)
    with torch.no_grad():
        expected, found = ours(TOKENS).logits, theirs(TOKENS).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


REFUSED = {
    "a zero point of 0 in version 1": (rtn(bits=2, group_size=16), "gptq", "zero points of 0.*fits gptq_v2"),
    "five bits in GPTQ": (rtn(bits=5), "gptq", "5 bits.*fits compressed-tensors"),
    "one symmetric bit": (rtn(bits=1, symmetric=True), "compressed-tensors", "one half"),
    "three bits in AWQ": (rtn(bits=3), "awq", "3 bits"),
    "act-order in compressed-tensors": (ORDERED, "compressed-tensors", "act-order.*fits gptq, gptq_v2"),
    "a trellis": (trellis(bits=2, L=12), "gptq", "Levelled|TailBiting|BitshiftTrellis"),
    "something beside the codes": (lorc(), "gptq", "beside its codes"),
    "an unknown format": (rtn(), "gguff", "lowbit writes gptq, "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(case, tmp_path):
    recipe, format, message = REFUSED[case]
    checkpoint(tmp_path / "own", recipe)
    with pytest.raises(BadRequest, match=message):
        lowbit.export(tmp_path / "own", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_awq_has_one_group_size(tmp_path):
    checkpoint(tmp_path / "own", rtn(bits=4, group_size=32), rtn(bits=4))
    with pytest.raises(BadRequest, match=r"one group size.*-1, 32"):
        lowbit.export(tmp_path / "own", tmp_path / "out", "awq")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path):
    checkpoint(tmp_path / "own", rtn())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(BadRequest, match=r"not empty.*thesis\.tex"):
        lowbit.export(tmp_path / "own", tmp_path / "out", "compressed-tensors")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_what_a_crash_left_is_no_model_and_is_replaced(tmp_path):
    checkpoint(tmp_path / "own", rtn())
    left = tmp_path / "out" / ".partial"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    with pytest.raises(BadRequest, match=r"no config\.json"):
        lowbit.load(tmp_path / "out")
    lowbit.export(tmp_path / "own", tmp_path / "out", "compressed-tensors")
    assert not left.exists()
    assert settings(tmp_path / "out")["quant_method"] == "compressed-tensors"
