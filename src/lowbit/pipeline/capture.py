"""Running decoder blocks on their own, and catching what flows into their linear layers.

`record_calls` lets the model run once with every block replaced by a recorder that hands its input on, which costs
an embedding and yields the first hidden states and each block's other arguments (masks, positions) whatever the
architecture. `find_stages` watches one block to see which layers share an input and in which order inputs appear.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.core.errors import BadRequest
from lowbit.core.products import FastLinear
from lowbit.pipeline.architecture import Block


@dataclass(frozen=True, eq=False)
class Call:
    """A block's arguments beside its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Layers that share one input, by path; one statistic serves them all."""

    layers: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """Groups whose inputs do not depend on each other: all experts' gate and up matrices, for example."""

    groups: tuple[Group, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer for group in self.groups for layer in group.layers)


@torch.no_grad()
def record_calls(model: PreTrainedModel, blocks: Sequence[Block], ids: Tensor) -> tuple[Tensor, list[Call]]:
    """First hidden states [samples, tokens, width] of windows `ids`, and each block's call."""
    calls: list[Call] = []
    entered: list[Tensor] = []

    def recorder(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        entered.append(hidden_states)
        calls.append(Call(args, kwargs))
        return hidden_states

    with ExitStack() as stack:
        for block in blocks:
            block.module.forward = recorder
            stack.callback(delattr, block.module, "forward")
        base: nn.Module = model.base_model
        base(input_ids=ids, use_cache=False)
    if len(calls) != len(blocks):
        raise BadRequest(
            f"{type(model).__name__} ran {len(calls)} of its {len(blocks)} blocks. It cannot be quantized."
        )
    return entered[0], calls


@torch.no_grad()
def final_logits(model: PreTrainedModel, blocks: Sequence[Block], ids: Tensor, hidden: Tensor) -> Tensor:
    """What the model makes of its last block's hidden states for windows `ids`: logits [samples, tokens, words]."""

    def last(*args: Any, **kwargs: Any) -> Tensor:
        return hidden

    with ExitStack() as stack:
        for block in blocks:
            block.module.forward = last
            stack.callback(delattr, block.module, "forward")
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def run_block(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """The block's output hidden states, same shape as `hidden`; weights take no gradients."""
    with FastLinear():
        output = block(hidden, *call.args, **call.kwargs)
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, Tensor) or output.shape != hidden.shape:
        raise BadRequest(f"{type(block).__name__} does not return hidden states of its input's shape.")
    return output


def find_stages(block: Block, linears: dict[str, nn.Module], hidden: Tensor, call: Call) -> list[Stage]:
    """The layers of a block by shared input, in the order in which inputs appear for `hidden`.

    Layers that did not run (experts no token was sent to) join the stage of their siblings.
    """
    seen: dict[tuple[Any, ...], list[str]] = {}
    inputs: list[Tensor] = []  # kept, so that no two inputs can have the same address

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs.append(args[0])
            seen.setdefault((args[0].data_ptr(), args[0].shape, args[0].stride()), []).append(name)

        return hook

    with hooks((module, watch(name)) for name, module in linears.items()):
        run_block(block.module, hidden, call)
    groups = [Group(tuple(names)) for names in seen.values()]
    stages: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        stages.setdefault(tuple(sibling(name) for name in group.layers), []).append(group)
    missing = [name for name in linears if not any(name in group.layers for group in groups)]
    return [Stage(tuple(found + _unseen(kinds, missing))) for kinds, found in stages.items()] + _strays(stages, missing)


def sibling(name: str) -> str:
    """A layer's name without the number of its expert: the same for all experts."""
    return re.sub(r"experts\.\d+\.", "experts.*.", name)


def _unseen(kinds: tuple[str, ...], missing: list[str]) -> list[Group]:
    """Groups of experts that did not run, like those of their siblings `kinds`."""
    first = [name for name in missing if sibling(name) == kinds[0]]
    stem = kinds[0].partition("*")[0]
    experts = [name.removeprefix(stem).partition(".")[0] for name in first]
    return [Group(tuple(kind.replace("*", expert) for kind in kinds)) for expert in experts]


def _strays(stages: dict[tuple[str, ...], list[Group]], missing: list[str]) -> list[Stage]:
    kinds = {kind for stage in stages for kind in stage}
    alone = [name for name in missing if sibling(name) not in kinds]
    return [Stage(tuple(Group((name,)) for name in alone))] if alone else []


@contextmanager
def hooks(pairs: Iterable[tuple[nn.Module, Callable[[nn.Module, tuple[Tensor, ...]], Any]]]) -> Iterator[None]:
    """Call each function before its module runs, while the body does."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
