"""LoRA adapters by PEFT on a model whose layers are codes: they train, the codes do not, and both come back."""

import pytest
import torch
from transformers.trainer_utils import validate_quantization_for_training

import lowbit
from integrations.checkpoints import TOKENS, logits, quantize_in_place, tiny_model, write_checkpoint
from lowbit.core.errors import BadRequest

peft = pytest.importorskip("peft", reason="peft is not installed (pip install lowbit[adapters])")

from lowbit.integrations.peft import LoraOnCodes, load_adapter, on_codes  # noqa: E402

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "mixtral": ["q_proj", "experts.0.up_proj"],
}


@pytest.fixture(scope="module", params=sorted(TARGETS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    model, folder = tiny_model(kind), tmp_path_factory.mktemp(kind) / "checkpoint"
    write_checkpoint(folder, model, quantize_in_place(model))
    return folder


def lora(targets, **settings):
    return on_codes(peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **settings))


def trained(model, steps=5):
    """Losses on the tokens that the adapters are trained on."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-2)
    losses = []
    for _ in range(steps):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_adapters_train_codes_stay_and_both_come_back(kind, folder, tmp_path):
    model = lowbit.load(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    untouched = logits(model)
    adapted = peft.get_peft_model(model, lora(TARGETS[kind]))
    assert any(isinstance(module, LoraOnCodes) for module in adapted.modules())
    losses = trained(adapted)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path / "adapter")
    again = load_adapter(lowbit.load(folder), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(adapted.eval()))
    assert not torch.equal(logits(again), untouched)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), untouched)
    after = adapted.unload().state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_transformers_trains_adapters_and_nothing_less(folder, kind):
    model = lowbit.load(folder)
    with pytest.raises(ValueError, match="attach trainable adapters"):
        validate_quantization_for_training(model)
    validate_quantization_for_training(peft.get_peft_model(model, lora(TARGETS[kind])))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    model, folder = tiny_model("llama"), tmp_path_factory.mktemp("refused") / "checkpoint"
    write_checkpoint(folder, model, quantize_in_place(model))
    return folder


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starting_values_from_the_weight_are_refused(llama, start):
    with pytest.raises(BadRequest, match=f"init_lora_weights='{start}'.*packed codes"):
        peft.get_peft_model(lowbit.load(llama), lora(["q_proj"], init_lora_weights=start))


def test_variants_that_need_the_weight_are_refused(llama):
    with pytest.raises(ValueError, match="use_dora"):
        peft.get_peft_model(lowbit.load(llama), lora(["q_proj"], use_dora=True))


def test_merging_is_refused_and_leaves_the_model_as_it_was(llama):
    adapted = peft.get_peft_model(lowbit.load(llama), lora(["q_proj"], init_lora_weights=False))
    before = logits(adapted)
    with pytest.raises(BadRequest, match="cannot be merged"):
        adapted.merge_and_unload()
    with pytest.raises(BadRequest, match="cannot be merged"):
        adapted.merge_adapter()
    assert torch.equal(logits(adapted), before)
