"""Running decoder blocks on their own, and catching what flows into their linear layers.

`record_calls` lets the model run once with every block replaced by a recorder that hands its input on, which costs
an embedding and yields the first hidden states and each block's other arguments (masks, positions) whatever the
architecture. `find_stages` watches one block to see which layers share an input and in which order inputs appear.
`gather` streams calibration data through a block and reduces the inputs of one stage to statistics.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.core.errors import BadRequest
from lowbit.core.parts import Statistic
from lowbit.pipeline.activations import batches
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


class _StopForward(Exception):
    """Raised by the last hook of a stage: nothing after it is needed."""


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
def run_block(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """The block's output hidden states, same shape as `hidden`."""
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

    with _hooks((module, watch(name)) for name, module in linears.items()):
        run_block(block.module, hidden, call)
    groups = [Group(tuple(names)) for names in seen.values()]
    stages: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        stages.setdefault(tuple(_sibling(name) for name in group.layers), []).append(group)
    missing = [name for name in linears if not any(name in group.layers for group in groups)]
    return [Stage(tuple(found + _unseen(kinds, missing))) for kinds, found in stages.items()] + _strays(stages, missing)


def _sibling(name: str) -> str:
    return re.sub(r"experts\.\d+\.", "experts.*.", name)


def _unseen(kinds: tuple[str, ...], missing: list[str]) -> list[Group]:
    """Groups of experts that did not run, like those of their siblings `kinds`."""
    first = [name for name in missing if _sibling(name) == kinds[0]]
    stem = kinds[0].partition("*")[0]
    experts = [name.removeprefix(stem).partition(".")[0] for name in first]
    return [Group(tuple(kind.replace("*", expert) for kind in kinds)) for expert in experts]


def _strays(stages: dict[tuple[str, ...], list[Group]], missing: list[str]) -> list[Stage]:
    kinds = {kind for stage in stages for kind in stage}
    alone = [name for name in missing if _sibling(name) not in kinds]
    return [Stage(tuple(Group((name,)) for name in alone))] if alone else []


@torch.no_grad()
def gather(
    streams: "Streams", stage: Stage, linears: dict[str, nn.Module], statistics: dict[Group, set[Statistic]]
) -> dict[tuple[Group, Statistic], Any]:
    """The state of each group's statistics over all calibration windows."""
    wanted = {group: statistics[group] for group in stage.groups if statistics[group]}
    states: dict[tuple[Group, Statistic], Any] = {}
    pending: set[Group] = set()
    floats: dict[str, Tensor] = {}

    def update(group: Group) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            streams.require_finite(x, group.layers[0])
            x_float = floats.get(group.layers[0])
            for statistic in wanted[group]:
                state = states.get((group, statistic))
                state = statistic.init(x.shape[1]) if state is None else state
                states[group, statistic] = statistic.update(state, x, x_float)
            pending.discard(group)
            if not pending:
                raise _StopForward

        return hook

    if wanted:
        hooks = [(linears[group.layers[0]], update(group)) for group in wanted]
        both = any(statistic.reads == "both" for found in wanted.values() for statistic in found)
        for batch in batches(*streams.quantized.shape[:2]):
            pending = set(wanted)
            if both:
                floats.update(streams.float_inputs(batch, [group.layers[0] for group in wanted]))
            with _hooks(hooks):
                streams.run(batch)
    return states


@dataclass(eq=False)
class Streams:
    """Calibration windows on their way through the blocks.

    quantized: hidden states [samples, tokens, width] as the quantized prefix produces them. full: the same in the
    original model, or None where no statistic reads them, with `original` the block in its original weights.
    """

    quantized: Tensor
    full: Tensor | None
    block: Block
    call: Callable[[int], Call]
    original: nn.Module | None = None
    _batch: slice = field(init=False)

    def run(self, batch: slice) -> None:
        """Run the block on a batch for its hooks' sake, as far as they need it."""
        self._batch = batch
        hidden = self.quantized[batch]
        with suppress(_StopForward):
            run_block(self.block.module, hidden, self.call(len(hidden)))

    def float_inputs(self, batch: slice, names: list[str]) -> dict[str, Tensor]:
        """The inputs [T, K] of layers `names` in the original model."""
        assert self.full is not None
        assert self.original is not None
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                found[name] = args[0].reshape(-1, args[0].shape[-1])

            return hook

        prefix = len(self.block.name) + 1
        hidden = self.full[batch]
        with _hooks((self.original.get_submodule(name[prefix:]), keep(name)) for name in names):
            run_block(self.original, hidden, self.call(len(hidden)))
        return found

    def advance(self) -> None:
        """Replace the hidden states by the block's outputs."""
        for batch in batches(*self.quantized.shape[:2]):
            self._batch = batch
            call = self.call(batch.stop - batch.start)
            output = run_block(self.block.module, self.quantized[batch], call)
            self.require_finite(output.reshape(-1, output.shape[-1]), f"{self.block.name} (output)")
            self.quantized[batch] = output
            if self.full is not None and self.original is not None:
                self.full[batch] = run_block(self.original, self.full[batch], call)

    def require_finite(self, x: Tensor, where: str) -> None:
        """Raise BadRequest naming layer and calibration window where x [T, K] holds NaN or Inf."""
        finite = torch.isfinite(x).all(-1)
        if not bool(finite.all()):
            # Experts see some tokens of the batch only: then the window is one of the batch.
            first, last = self._batch.start, self._batch.stop - 1
            if len(x) == (last + 1 - first) * self.quantized.shape[1]:
                first = last = first + int(finite.long().argmin()) // self.quantized.shape[1]
            window = f"window {first}" if first == last else f"one of the windows {first} to {last}"
            raise BadRequest(
                f"{where}: activations hold NaN or Inf in calibration {window}. "
                "Look at that window's text, or at the model's weights."
            )


@contextmanager
def _hooks(pairs: Iterable[tuple[nn.Module, Callable[[nn.Module, tuple[Tensor, ...]], None]]]) -> Any:
    handles = [module.register_forward_pre_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
