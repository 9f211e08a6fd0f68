"""What differs between model architectures, as one table, and how blocks and linear layers are found.

A decoder block is a member of the longest list of modules whose length is the configuration's number of layers; a
quantizable layer is any linear map inside a block. That finds Llama, Mistral, Qwen, Gemma, Phi, GPT-2, OPT and
mixtures of experts without a line about them; what a walk cannot know stands in `ARCHITECTURES`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowbit.core.errors import BadRequest
from lowbit.runtime.experts import LinearExperts, is_fused_experts


@dataclass(frozen=True)
class Architecture:
    """expert_names: the checkpoint's name of each expert matrix -> ours. routers: linear layers that choose experts."""

    expert_names: Mapping[str, str] = field(default_factory=dict)
    routers: tuple[str, ...] = ()


_PLAIN = Architecture()
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _PLAIN,
    "mistral": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "gemma2": _PLAIN,
    "gemma3_text": _PLAIN,
    "phi3": _PLAIN,
    "gpt2": _PLAIN,
    "opt": _PLAIN,
    "mixtral": Architecture({"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}),
    "qwen3_moe": _PLAIN,
    "qwen2_moe": Architecture(routers=("mlp.shared_expert_gate",)),
}


def architecture_of(model_type: str) -> Architecture:
    """The table's row, or an empty one for an architecture that is found by walking alone."""
    return ARCHITECTURES.get(model_type, _PLAIN)


@dataclass(frozen=True)
class Block:
    """One decoder block. name: its path in the model, such as `model.layers.3`."""

    name: str
    module: nn.Module

    def linears(self) -> Iterator[tuple[str, nn.Module]]:
        """Full path and module of each linear layer, in the module tree's order."""
        for name, module in self.module.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                yield f"{self.name}.{name}", module


def find_blocks(model: nn.Module, count: int) -> list[Block]:
    """The decoder blocks of `model`; raises BadRequest saying what was found where there is no such list."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    fitting = {name: blocks for name, blocks in lists.items() if len(blocks) == count}
    if not fitting:
        found = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists.items()) or "none"
        raise BadRequest(
            f"{type(model).__name__}: no list of {count} decoder blocks. Lists of modules found: {found}. "
            "Only decoder-only models built of one list of blocks can be quantized."
        )
    name = max(fitting, key=lambda candidate: sum(p.numel() for p in fitting[candidate].parameters()))
    return [Block(f"{name}.{i}", module) for i, module in enumerate(fitting[name])]


def separate_experts(model: nn.Module) -> None:
    """Replace fused experts, one 3-D parameter for all, by one linear layer per expert and matrix, in place."""
    for name, module in list(model.named_modules()):
        if is_fused_experts(module):
            model.set_submodule(name, LinearExperts.from_fused(module))


def expert_key(name: str, architecture: Architecture) -> str:
    """A checkpoint's key of an expert's matrix in our names: `experts.3.w1.weight` -> `experts.3.gate_proj.weight`."""
    match = re.search(r"(experts\.\d+\.)(\w+)(\.\w+)$", name)
    if not match or match[2] not in architecture.expert_names:
        return name
    return name[: match.start()] + match[1] + architecture.expert_names[match[2]] + match[3]


def shape_of(module: nn.Module) -> tuple[int, int]:
    """[N, K] of a linear layer."""
    weight = module.get_parameter("weight")
    n, k = weight.shape[0], weight.shape[1]
    return (k, n) if isinstance(module, Conv1D) else (n, k)


def weight_of(module: nn.Module) -> Tensor:
    """The weight [N, K] of a linear layer; a copy."""
    weight = module.get_parameter("weight").detach()
    return (weight.T if isinstance(module, Conv1D) else weight).contiguous().clone()


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a linear layer the weight [N, K] in place of its own, which stays as it is for whoever holds it."""
    stored = weight.T if isinstance(module, Conv1D) else weight
    module.register_parameter("weight", nn.Parameter(stored.float().contiguous(), requires_grad=False))
