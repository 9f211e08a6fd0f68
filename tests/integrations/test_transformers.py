"""A checkpoint in transformers: every way of loading it, casting it, saving it, and turning it dense again."""

import json
import shutil

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import lowbit
from integrations.checkpoints import CONFIGS, TOKENS, logits, quantize_in_place, tiny_model, write_checkpoint
from lowbit.core.errors import BadRequest
from lowbit.formats.shards import Shards
from lowbit.integrations.transformers import register
from lowbit.runtime import QuantizedLinear


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(kind, tmp_path_factory):
    """A folder and the dense model that holds its dequantized weights."""
    folder, model = tmp_path_factory.mktemp(kind) / "checkpoint", tiny_model(kind)
    write_checkpoint(folder, model, quantize_in_place(model))
    return folder, model


@pytest.fixture
def copied(tmp_path_factory, tmp_path):
    """A checkpoint of its own, to damage."""
    model = tiny_model("llama")
    write_checkpoint(tmp_path / "checkpoint", model, quantize_in_place(model))
    return tmp_path / "checkpoint"


def tensors_of(folder):
    shards = Shards.open(folder)
    return {name: shards.load(name) for name in shards.entries}


def same_bytes(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), b[name].view(torch.uint8)), name


def test_a_loaded_model_computes_what_the_dequantized_weights_do(checkpoint):
    folder, dense = checkpoint
    for model in (lowbit.load(folder), AutoModelForCausalLM.from_pretrained(folder)):
        assert any(isinstance(module, QuantizedLinear) for module in model.modules())
        torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-5)


def test_saving_gives_the_same_bytes_again(checkpoint, tmp_path):
    folder, dense = checkpoint
    lowbit.load(folder).save_pretrained(tmp_path)
    same_bytes(tensors_of(tmp_path), tensors_of(folder))
    again = lowbit.load(tmp_path)
    torch.testing.assert_close(logits(again), logits(dense), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_load_or_cast_leaves_what_is_stored_alone(checkpoint, dtype, tmp_path):
    folder, dense = checkpoint
    stored = tensors_of(folder)
    cast = lowbit.load(folder).to(dtype)
    for model in (lowbit.load(folder, dtype=dtype), cast):
        quantized = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
        for name, module in quantized.items():
            buffers = dict(module.named_buffers())
            same_bytes(buffers, {field: stored[f"{name}.{field}"] for field in buffers})
        assert model.dtype == dtype
        torch.testing.assert_close(logits(model), logits(dense), rtol=0.1, atol=0.05)


def test_dequantizing_gives_the_dense_model(checkpoint, tmp_path):
    folder, dense = checkpoint
    model = lowbit.load(folder).dequantize()
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(dense), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_accelerate_places_the_model(checkpoint, device_map):
    folder, dense = checkpoint
    torch.testing.assert_close(
        logits(lowbit.load(folder, device_map=device_map)).cpu(), logits(dense), rtol=1e-4, atol=1e-5
    )


def test_greedy_generation_follows_the_dense_model(checkpoint):
    folder, dense = checkpoint
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ours, theirs = lowbit.load(folder).generate(TOKENS[:1], **how), dense.generate(TOKENS[:1], **how)
    assert torch.equal(ours, theirs)


def test_the_bare_backbone_loads_too(checkpoint):
    folder, dense = checkpoint
    with torch.no_grad():
        ours, theirs = AutoModel.from_pretrained(folder)(TOKENS)[0], dense.base_model(TOKENS)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_registering_twice_changes_nothing():
    register()
    register()


def change_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def newer(config):
    config["quantization_config"] |= {"format_version": 99, "lowbit_version": "77.0"}


def other_shape(config):
    config["hidden_size"] = 64


def missing_layer(config):
    config["num_hidden_layers"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [(newer, "77.0"), (other_shape, "model but"), (missing_layer, "model.layers.1")],
)
@pytest.mark.parametrize("loader", [lowbit.load, AutoModelForCausalLM.from_pretrained])
def test_a_config_that_does_not_fit_is_refused(copied, change, message, loader):
    change_config(copied, change)
    with pytest.raises(BadRequest, match=message):
        loader(copied)


@pytest.mark.parametrize("loader", [lowbit.load, AutoModelForCausalLM.from_pretrained])
def test_a_missing_tensor_is_refused_not_invented(copied, loader):
    from lowbit.formats.files import write_tensors_atomically

    tensors = tensors_of(copied)
    del tensors["model.layers.0.mlp.up_proj.scale"]
    write_tensors_atomically(copied / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(BadRequest, match=r"up_proj\.scale"):
        loader(copied)


def test_what_is_no_finished_checkpoint_is_refused_with_the_way_out(copied, tmp_path):
    with pytest.raises(BadRequest, match="not a folder"):
        lowbit.load(tmp_path / "nowhere")
    (copied / "config.json").unlink()
    with pytest.raises(BadRequest, match="not a checkpoint"):
        lowbit.load(copied)
    (copied / ".lowbit").mkdir()
    with pytest.raises(BadRequest, match="--resume"):
        lowbit.load(copied)
    shutil.rmtree(copied / ".lowbit")
    tiny_model("llama").save_pretrained(copied)
    with pytest.raises(BadRequest, match="quantization_config"):
        lowbit.load(copied)


def test_quantizing_a_dense_model_while_loading_is_refused(copied, tmp_path):
    from lowbit.integrations.transformers import LowbitConfig

    config = LowbitConfig(**json.loads((copied / "config.json").read_text())["quantization_config"])
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="pre-quantized"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
