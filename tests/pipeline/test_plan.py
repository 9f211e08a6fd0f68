"""The plan: every layer, what is left alone and why, and sizes that come true."""

import pytest

import lowbit
from lowbit import api, codes, rounding, statistics, transforms
from lowbit.core.errors import BadRequest
from lowbit.pipeline.plan import matches
from lowbit.recipes import optq, rtn
from pipeline.tiny import contents, save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model"))


def test_sizes_in_the_plan_are_the_sizes_on_disk(model, tmp_path):
    planned = api.plan(model, rtn(bits=3))
    lowbit.quantize(model, tmp_path / "out", rtn(bits=3))
    assert lowbit.formats.shards.Shards.open(tmp_path / "out").nbytes == planned.bytes_after
    assert planned.bytes_before == lowbit.formats.shards.Shards.open(model).nbytes


def test_everything_is_either_planned_or_left_alone_with_a_reason(model):
    planned = api.plan(model, "rtn", targets=["*self_attn*"], ignore=["*.1.*k_proj"])
    assert {layer.name.rpartition(".")[2] for layer in planned.layers} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(planned.layers) == 7
    reasons = {tensor.name: tensor.reason for tensor in planned.left_alone}
    assert reasons["model.layers.1.self_attn.k_proj.weight"] == "ignored by *.1.*k_proj"
    assert reasons["model.layers.0.mlp.up_proj.weight"] == "not among the targets"
    assert reasons["model.embed_tokens.weight"] == "outside the decoder blocks"
    assert reasons["model.layers.0.input_layernorm.weight"] == "not a linear layer's weight"
    weights = sum(layer.weights for layer in planned.layers) + sum(tensor.nbytes // 4 for tensor in planned.left_alone)
    assert weights == planned.parameters


def test_the_last_override_that_matches_wins(model):
    overrides = {"*down_proj": rtn(bits=8), "*.0.*": rtn(bits=2)}
    planned = api.plan(model, rtn(bits=4), overrides=overrides)
    bits = {layer.name.removeprefix("model.layers."): layer.recipe.code.bits for layer in planned.layers}
    assert bits["1.mlp.down_proj"] == 8
    assert bits["0.mlp.down_proj"] == 2
    assert bits["1.mlp.up_proj"] == 4


def again(command, out, other):
    """The call that a report names writes the same folder, elsewhere."""
    parts = {name: part for home in (codes, rounding, statistics, transforms) for name, part in vars(home).items()}
    own = {name: getattr(lowbit, name) for name in ("Calibration", "Options", "Recipe")}
    eval(command.replace(str(out), str(other)), parts | own | {"lowbit": lowbit})
    assert contents(other) == contents(out)


def test_mixed_recipes_load(model, tmp_path):
    overrides = {"*down_proj": optq(bits=8), "*.0.*q_proj": optq(bits=2, group_size=16, act_order=True)}
    calibration = lowbit.Calibration(samples=2, length=32)
    record = lowbit.quantize(model, tmp_path / "out", rtn(bits=4), overrides=overrides, calibration=calibration)
    again(record["command"], tmp_path / "out", tmp_path / "again")
    loaded = lowbit.load(tmp_path / "out")
    recipes = {name: module.recipe for name, module in loaded.named_modules() if hasattr(module, "recipe")}
    assert recipes["model.layers.0.self_attn.q_proj"] == overrides["*.0.*q_proj"]
    assert recipes["model.layers.1.mlp.down_proj"] == overrides["*down_proj"]
    assert recipes["model.layers.1.mlp.up_proj"] == rtn(bits=4)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*down_proj", "model.layers.0.mlp.down_proj", True),
        ("down_proj", "model.layers.0.mlp.down_proj", True),
        ("mlp.down_proj", "model.layers.0.mlp.down_proj", True),
        ("own_proj", "model.layers.0.mlp.down_proj", False),
        ("*.1.*", "model.layers.11.mlp.down_proj", False),
        (r"re:model\.layers\.\d\..*", "model.layers.3.mlp.down_proj", True),
        (r"re:layers", "model.layers.3.mlp.down_proj", False),
    ],
)
def test_patterns(pattern, name, fits):
    assert matches(pattern, name) is fits


def test_a_pattern_that_is_no_expression():
    with pytest.raises(BadRequest, match="not a regular expression"):
        matches("re:[", "x")
