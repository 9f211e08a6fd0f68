"""What people do to any transformers model, done to a quantized one: copies, processes, disks, batches, hubs."""

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers.utils import hub as hub_utilities

import lowbit
from integrations.checkpoints import TOKENS, logits, quantize_in_place, tiny_model, write_checkpoint
from lowbit.formats.shards import Shards
from lowbit.runtime import QuantizedLinear


@pytest.fixture(scope="module", params=["llama", "tied", "mixtral"])
def folder(request, tmp_path_factory):
    model, folder = tiny_model(request.param), tmp_path_factory.mktemp(request.param) / "checkpoint"
    write_checkpoint(folder, model, quantize_in_place(model))
    return folder


def stored(folder):
    shards = Shards.open(folder)
    return {name: shards.load(name) for name in shards.entries}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_the_same_and_is_one(folder, copied):
    model = lowbit.load(folder)
    before = logits(model)  # also fills what a layer derives from its buffers
    other = copied(model)
    assert torch.equal(logits(other), before)
    for module in other.modules():
        if isinstance(module, QuantizedLinear):
            module.get_buffer("weight").zero_()
    assert torch.equal(logits(model), before)


def test_a_state_dict_moves_a_model(folder):
    source, target = lowbit.load(folder), lowbit.load(folder)
    with torch.no_grad():
        for tensor in target.state_dict().values():
            tensor.zero_()
    assert not target.load_state_dict(source.state_dict()).missing_keys
    assert torch.equal(logits(target), logits(source))


def test_blocks_on_disk_come_in_when_they_are_needed(folder, tmp_path):
    whole = lowbit.load(folder)
    in_memory = [f"model.{name}" for name, _ in whole.model.named_children() if name != "layers"]
    device_map = dict.fromkeys([*in_memory, "lm_head", "model.layers.0"], "cpu") | {"model.layers.1": "disk"}
    model = lowbit.load(folder, device_map=device_map)
    assert all(buffer.is_meta for buffer in model.model.layers[1].buffers())
    assert not any(buffer.is_meta for buffer in model.model.layers[0].buffers())
    assert torch.equal(logits(model), logits(whole))
    assert all(buffer.is_meta for buffer in model.model.layers[1].buffers())
    model.save_pretrained(tmp_path / "saved")
    saved, own = stored(tmp_path / "saved"), stored(folder)
    assert all(torch.equal(saved[name], own[name]) for name in own)


def test_a_padded_batch_generates_what_each_prompt_does(folder):
    model = lowbit.load(folder)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    short, long = TOKENS[:1, 5:9], TOKENS[1:, :9]
    batch = torch.cat([torch.nn.functional.pad(short, (5, 0)), long])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(short), (5, 0)), torch.ones_like(long)])
    both = model.generate(batch, attention_mask=mask, **how)
    assert torch.equal(both[0, 9:], model.generate(short, **how)[0, 4:])
    assert torch.equal(both[1, 9:], model.generate(long, **how)[0, 9:])


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_the_same_with_and_without_its_cache(folder, use_cache):
    model = lowbit.load(folder)
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(TOKENS[:1], use_cache=use_cache, **how),
        lowbit.load(folder).dequantize().generate(TOKENS[:1], **how),
    )


def test_push_to_hub_uploads_a_folder_that_loads(folder, tmp_path, monkeypatch):
    """The hub's side of the conversation is played here: what would be uploaded is kept."""
    hub = tmp_path / "hub"
    hub.mkdir()

    def keep(self, repo_id, operations, **kwargs):
        for operation in operations:
            (hub / operation.path_in_repo).write_bytes(Path(operation.path_or_fileobj).read_bytes())

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", keep)
    monkeypatch.setattr(hub_utilities, "create_and_tag_model_card", lambda *_, **__: ModelCard("---\n---\n"))
    model = lowbit.load(folder)
    model.push_to_hub("me/model")
    again = lowbit.load(hub)
    assert torch.equal(logits(again), logits(model))
    assert json.loads((hub / "config.json").read_text())["quantization_config"]["quant_method"] == "lowbit"
