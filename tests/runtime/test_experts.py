"""Experts as linear layers against the fused modules of transformers."""

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from lowbit.core.errors import BadRequest
from lowbit.runtime import LinearExperts, is_fused_experts

E, H, INNER, T = 5, 12, 20, 9


def fused(kind):
    sizes = {"hidden_size": H, "intermediate_size": INNER, "num_hidden_layers": 1}
    module = {
        "mixtral": lambda: MixtralExperts(MixtralConfig(**sizes, num_local_experts=E)),
        "qwen3": lambda: Qwen3MoeExperts(Qwen3MoeConfig(**sizes, moe_intermediate_size=INNER, num_experts=E)),
    }[kind]()
    module.config._experts_implementation = "eager"
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.shape[1]))
    return module.requires_grad_(False)


def routed(generator):
    index = torch.stack([torch.randperm(E, generator=generator)[:2] for _ in range(T)])
    return torch.randn(T, H, generator=generator), index, torch.rand(T, 2, generator=generator)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3"])
def test_the_result_is_that_of_the_fused_module_bit_for_bit(kind):
    module, inputs = fused(kind), routed(torch.Generator().manual_seed(1))
    assert is_fused_experts(module)
    torch.testing.assert_close(LinearExperts.from_fused(module)(*inputs), module(*inputs), rtol=1e-6, atol=1e-6)


def test_an_index_past_the_last_expert_stands_for_none():
    experts, (x, index, weights) = LinearExperts.from_fused(fused("mixtral")), routed(torch.Generator().manual_seed(2))
    dropped = index.clone()
    dropped[:, 1] = E
    torch.testing.assert_close(experts(x, dropped, weights), experts(x, index[:, :1], weights[:, :1]))


def test_weights_are_views_under_the_names_of_the_checkpoint():
    module = fused("mixtral")
    experts = LinearExperts.from_fused(module)
    names = {f"{e}.{p}.weight" for e in range(E) for p in ("gate_proj", "up_proj", "down_proj")}
    assert experts.state_dict().keys() == names
    for pointer in (experts[3].up_proj.weight, experts[3].down_proj.weight):
        owner = module.gate_up_proj if pointer is experts[3].up_proj.weight else module.down_proj
        assert pointer.untyped_storage().data_ptr() == owner.untyped_storage().data_ptr()


def test_fusing_again_gives_the_same_parameters():
    module = fused("mixtral")
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    experts = LinearExperts.from_fused(module)
    experts.fuse_into(module)
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


def test_a_skeleton_without_memory_separates_too():
    experts = LinearExperts.from_fused(fused("qwen3").to("meta"))
    assert experts[0].gate_proj.weight.shape == (INNER, H)
    assert experts[0].gate_proj.weight.is_meta


def test_modules_that_compute_something_else_are_not_taken_for_fused_experts():
    with torch.device("meta"):
        other = GptOssExperts(GptOssConfig(hidden_size=H, intermediate_size=INNER, num_local_experts=E))
    assert not is_fused_experts(other)
    assert not is_fused_experts(nn.Linear(3, 4))
    interleaved = fused("mixtral")
    interleaved.is_concatenated = False
    assert not is_fused_experts(interleaved)
    with pytest.raises(BadRequest, match="GptOssExperts"):
        LinearExperts.from_fused(other)
