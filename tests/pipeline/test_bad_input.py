"""Whatever is wrong with a request is said in one clear paragraph, before anything is written."""

import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import lowbit
from lowbit import api
from lowbit.core.errors import BadRequest
from lowbit.pipeline import quantize as pipeline
from lowbit.pipeline.quantize import Calibration
from lowbit.pipeline.source import SourceModel
from lowbit.recipes import make_recipe
from pipeline.tiny import save_tiny

CALIBRATION = Calibration(samples=2, length=32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("sound"))


@pytest.fixture
def model(sound, tmp_path):
    """A copy, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def refused(model, out, message, recipe="optq", **settings):
    with pytest.raises(BadRequest, match=message) as error:
        lowbit.quantize(model, out, recipe, **({"calibration": CALIBRATION} | settings))
    assert error.value.exit_code == 2
    assert not out.exists()


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "out", "not a folder")


def test_a_hub_name_that_the_hub_does_not_give(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("lowbit.integrations.hub.snapshot_download", unreachable)
    refused("someone/some-model", tmp_path / "out", "neither a folder here nor a model that the hub gave")
    with pytest.raises(BadRequest, match="neither a folder here nor a model that the hub gave"):
        lowbit.load("someone/some-model")


def test_not_a_causal_language_model(model, tmp_path):
    config = {"model_type": "vit", "hidden_size": 8}
    (model / "config.json").write_text(json.dumps(config))
    refused(model, tmp_path / "out", "'vit' is not a causal language model")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ('{"model_type": "nothing"}', "cannot be read"), (None, "no config.json")],
)
def test_a_configuration_that_is_none(model, tmp_path, text, message):
    path = model / "config.json"
    path.unlink() if text is None else path.write_text(text)
    refused(model, tmp_path / "out", message)


def test_unknown_recipe_and_setting_offer_the_nearest(model, tmp_path):
    refused(model, tmp_path / "out", "No recipe named 'optqq'. Did you mean optq", "optqq")
    with pytest.raises(BadRequest, match=r"no setting 'bit'\. Did you mean bits"):
        make_recipe("optq", {"bit": 3})


@pytest.mark.parametrize("settings", [{"bits": 0}, {"bits": 9}, {"group_size": 0}, {"group_size": -2}, {"damping": -1}])
def test_settings_out_of_range(settings):
    with pytest.raises(BadRequest, match="must be"):
        make_recipe("optq", settings)


def test_group_sizes_that_do_not_divide_name_every_layer_and_what_fits(model, tmp_path):
    recipe = lowbit.recipes.optq(group_size=32)
    refused(model, tmp_path / "out", r"2 layers do not fit[\s\S]*down_proj[\s\S]*48 inputs[\s\S]*Use 16 or 24", recipe)


def test_patterns_that_leave_nothing(model, tmp_path):
    refused(model, tmp_path / "out", "No layer would be quantized", ignore=["*"])
    refused(model, tmp_path / "out", "not a regular expression", ignore=["re:("])
    refused(model, tmp_path / "out", r"--targets 'q_prj' matches no layer.* q_proj", targets=["q_prj"])
    refused(model, tmp_path / "out", r"--ignore '\*.nothing' matches no layer", ignore=["*.nothing"])
    refused(model, tmp_path / "out", "--override 'lm_head' matches", overrides={"lm_head": lowbit.recipes.rtn()})
    api.plan(model, "rtn", ignore=["lm_head"])  # left alone anyway


@pytest.mark.parametrize("damage", ["missing", "truncated", "header"])
def test_damaged_shards(model, tmp_path, damage):
    shard = model / "model.safetensors"
    data = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(data[:-10] if damage == "truncated" else b"\xff" * 8 + data[8:])
    refused(model, tmp_path / "out", "safetensors")


def test_a_tensor_that_is_missing(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    refused(model, tmp_path / "out", "lack 1 tensors.*model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(model, tmp_path, value):
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    refused(model, tmp_path / "out", "model.layers.1.mlp.up_proj.weight holds NaN or Inf")


def test_activations_that_overflow_name_layer_and_window(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.gate_proj.weight"] *= 1e30
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1e30
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadRequest, match=r"layers\.0\.mlp\.down_proj: activations hold NaN or Inf.*window 0"):
        lowbit.quantize(model, tmp_path / "out", "optq", ignore=["*gate_proj", "*up_proj"], calibration=CALIBRATION)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"a few words", "too short"), (b"caf\xe9 " * 99, "UTF-8"), (None, "does not exist")],
)
def test_calibration_text(model, tmp_path, content, message):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    refused(model, tmp_path / "out", message, calibration=Calibration(str(text), 2, 32))


def test_a_tokenizer_of_another_model(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:100].clone()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    small = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 0}
    (model / "config.json").write_text(json.dumps(config | small))
    refused(model, tmp_path / "out", "does not belong to this model")


def test_no_tokenizer(model, tmp_path):
    for path in model.glob("tokenizer*"):
        path.unlink()
    refused(model, tmp_path / "out", "tokenizer")


def test_sequences_longer_than_the_model_was_made_for(model, tmp_path):
    refused(model, tmp_path / "out", "context is 64", calibration=Calibration(samples=2, length=128))
    with pytest.raises(BadRequest, match="--samples 0"):
        Calibration(samples=0)


def test_output_folder_in_use(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadRequest, match="not empty"):
        lowbit.quantize(model, out, "rtn")
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(BadRequest, match="holds no unfinished run"):
        lowbit.quantize(model, out, "rtn", options=lowbit.Options(resume=True))


def test_resuming_a_finished_run(model, tmp_path):
    lowbit.quantize(model, tmp_path / "out", "rtn")
    with pytest.raises(BadRequest, match="holds a finished model"):
        lowbit.quantize(model, tmp_path / "out", "rtn", options=lowbit.Options(resume=True))
    refused(tmp_path / "out", tmp_path / "again", "quantized already")


def test_no_space_is_foreseen(model, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    refused(model, tmp_path / "out", "needs .* GB on disk")


def test_strict_runs_end_at_the_first_outcome(tmp_path):
    from lowbit.core.errors import LowbitError

    model = save_tiny("mixtral", tmp_path / "model")
    with pytest.raises(LowbitError, match=r"experts\.\d.*recipe optq.*--strict: .*fewer than"):
        lowbit.quantize(
            model,
            tmp_path / "out",
            "optq",
            calibration=Calibration(samples=1, length=16),
            options=lowbit.Options(strict=True),
        )


def test_a_checkpoint_that_differs_from_the_run_fails_it(model, tmp_path, monkeypatch):
    """The reload check can fail: here one weight changes on the disk."""
    from lowbit.core.errors import LowbitError

    assemble = pipeline.assemble

    def tampered(run, folder, *rest):
        assemble(run, folder, *rest)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(pipeline, "assemble", tampered)
    with pytest.raises(LowbitError, match="differs from what was computed"):
        lowbit.quantize(model, tmp_path / "out", "rtn")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_senseless_configurations(kind, tmp_path):
    """Each entry replaced by values that belong there less and less: refused, or a model all the same; and soon."""
    folder = save_tiny(kind, tmp_path / kind)
    path = folder / "config.json"
    good, draw = json.loads(path.read_text()), random.Random(0)
    refusals = 0
    for key in good:
        for value in draw.sample([None, True, -1, 0, 10**6, 2**31, 2**63, 1e308, "x", [], [1], {}, {"a": 1}], 4):
            path.write_text(json.dumps(good | {key: value}))
            try:
                SourceModel.open(str(folder))
            except BadRequest:
                refusals += 1
    assert refusals > len(good)


def test_shapes_of_another_model(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    refused(model, tmp_path / "out", r"is \[48, 32\] in the shards, but config.json describes \[64, 32\]")
