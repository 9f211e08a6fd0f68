"""What a stage's statistics see: calibration windows run through a block, batch by batch, observed and reduced.

The block runs as far as the stage's inputs in its present state, then, where a statistic asks for it, a copy in its
original weights: on the original model's hidden states for float inputs, on the quantized prefix's for attention. Of
a mixture of experts the copy sends tokens where the quantized block sent them, so that inputs can be compared.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.errors import BadRequest
from lowbit.core.parts import Observable, Observed, Statistic
from lowbit.pipeline.activations import BATCH_TOKENS, batches
from lowbit.pipeline.architecture import Block
from lowbit.pipeline.attention import ATTENTION, Attention, watch_attention
from lowbit.pipeline.capture import Call, Group, hooks, run_block
from lowbit.runtime.experts import LinearExperts

LOOKS_AT_ORIGINAL: frozenset[Observable] = ATTENTION | {"float_inputs"}
"""The observables for which a block is kept in its original weights."""

States = dict[tuple[Group, Statistic], Any]


class _StopForward(Exception):
    """Raised by the last hook of a stage: nothing after it is needed."""


@torch.no_grad()
def gather(streams: "Streams", wanted: Mapping[Group, set[Statistic]], started: States) -> States:
    """The state of each group's statistics over all calibration windows, going on from those in `started`."""
    states: States = {}
    needed = frozenset[Observable]().union(*(one.reads for found in wanted.values() for one in found))
    for batch in streams.batches() if needed else ():
        scene = streams.observe(batch, [group.layers[0] for group in wanted], needed)
        for group, statistics in wanted.items():
            seen = scene.of(group.layers[0])
            for statistic in statistics if seen else ():
                key = group, statistic
                state = states.get(key, started.get(key))
                state = statistic.init(seen["inputs"].shape[1]) if state is None else state
                states[key] = statistic.update(state, {one: seen[one] for one in seen.keys() & statistic.reads})
    return states


@dataclass(frozen=True, eq=False)
class Scene:
    """One batch as a block's layers see it. inputs: of the layers that ran; routing: [S T, k] experts by path."""

    needed: frozenset[Observable]
    shape: tuple[int, int]
    inputs: Mapping[str, Tensor]
    float_inputs: Mapping[str, Tensor]
    routing: Mapping[str, Tensor]
    token_counts: Tensor
    attention: Attention | None

    def of(self, name: str) -> Observed:
        """What there is to see of a layer; nothing where none of the batch's tokens reached it."""
        seen: dict[Observable, Tensor] = {}
        if name in self.inputs:
            seen["inputs"], seen["token_counts"] = self.inputs[name], self.token_counts
        if seen and name in self.float_inputs:
            seen["float_inputs"] = self.float_inputs[name]
        if seen and "places" in self.needed:
            seen["places"] = self._places(name)
        if seen and self.attention is not None:
            seen |= self.attention.of(name, self.needed)
        return seen

    def _places(self, name: str) -> Tensor:
        path, expert = expert_of(name, self.routing)
        rows = torch.arange(self.shape[0] * self.shape[1])
        if path:
            rows = torch.where(self.routing[path] == expert)[0]
        if len(rows) != len(self.inputs[name]):
            raise BadRequest(
                f"{name} runs on {len(self.inputs[name])} of {len(rows)} tokens, and lowbit cannot tell which. "
                "Use a recipe that counts all tokens alike, such as optq, or leave the layer out with --ignore."
            )
        return torch.stack([rows // self.shape[1], rows % self.shape[1]], 1)


def expert_of(name: str, paths: Iterable[str]) -> tuple[str, int]:
    """The path of the experts that a layer is one of, and which; an empty path for a layer of none."""
    for path in paths:
        if name.startswith(f"{path}."):
            return path, int(name[len(path) + 1 :].partition(".")[0])
    return "", 0


@dataclass(eq=False)
class Streams:
    """Calibration windows on their way through the blocks.

    quantized: hidden states [samples, tokens, width] as the quantized prefix produces them. full: the same in the
    original model, or None where no statistic reads them. original: the block in its original weights, or None where
    none looks at it. token_counts: [samples, tokens]. batch_tokens: run together.
    """

    quantized: Tensor
    full: Tensor | None
    block: Block
    call: Callable[[int], Call]
    token_counts: Tensor
    original: Block | None = None
    batch_tokens: int = BATCH_TOKENS
    _batch: slice = field(init=False)
    _feeding: frozenset[str] | None = field(init=False, default=None)

    def batches(self) -> Iterator[slice]:
        return batches(self.quantized.shape[0], self.quantized.shape[1], self.batch_tokens)

    def observe(self, batch: slice, names: list[str], needed: frozenset[Observable]) -> Scene:
        """Run a batch for what `needed` names of layers `names`."""
        self._batch = batch
        hidden, routing = self.quantized[batch], dict[str, Tensor]()
        call = self.call(len(hidden))
        inputs = _inputs(self.block, names, hidden, call, _recorded(self.block, routing))
        for name, x in inputs.items():
            self.require_finite(x, name)
        float_inputs: Mapping[str, Tensor] = {}
        if "float_inputs" in needed and self.full is not None and self.original is not None:
            replayed = _replayed(self.original, routing)
            float_inputs = _inputs(self.original, list(inputs), self.full[batch], call, replayed)
        attention = self._attention(names, needed, hidden, call)
        shape = hidden.shape[0], hidden.shape[1]
        return Scene(needed, shape, inputs, float_inputs, routing, self.token_counts[batch], attention)

    def _attention(
        self, names: list[str], needed: frozenset[Observable], hidden: Tensor, call: Call
    ) -> Attention | None:
        """The block's attention, where there is anything of it to be seen for layers `names`."""
        unconcerned = self._feeding is not None and not self._feeding.intersection(names)
        if self.original is None or not needed & ATTENTION or (unconcerned and "attention" not in needed):
            return None
        attention = watch_attention(self.original, hidden, call)
        self._feeding = frozenset(attention.outputs)
        return attention

    def advance(self) -> None:
        """Replace the hidden states by the block's outputs."""
        for batch in self.batches():
            self._batch = batch
            call = self.call(batch.stop - batch.start)
            output = run_block(self.block.module, self.quantized[batch], call)
            self.require_finite(output.reshape(-1, output.shape[-1]), f"{self.block.name} (output)")
            self.quantized[batch] = output
            if self.full is not None and self.original is not None:
                self.full[batch] = run_block(self.original.module, self.full[batch], call)

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


Hooks = list[tuple[nn.Module, Callable[[nn.Module, tuple[Tensor, ...]], Any]]]


def _inputs(block: Block, names: list[str], hidden: Tensor, call: Call, others: Hooks) -> dict[str, Tensor]:
    """The inputs [t, K] of those layers `names` that any token reaches; the block runs no further than they need."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = args[0].reshape(-1, args[0].shape[-1])
            if len(found) == len(names):
                raise _StopForward

        return hook

    modules = dict(block.linears())
    with hooks([*others, *((modules[name], keep(name)) for name in names)]), suppress(_StopForward):
        run_block(block.module, hidden, call)
    return found


def _experts(block: Block) -> list[tuple[str, nn.Module]]:
    modules = block.module.named_modules()
    return [(f"{block.name}.{name}", module) for name, module in modules if isinstance(module, LinearExperts)]


def _recorded(block: Block, routing: dict[str, Tensor]) -> Hooks:
    """Hooks that note in `routing` where tokens are sent."""

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            routing[path] = args[1]

        return hook

    return [(module, note(path)) for path, module in _experts(block)]


def _replayed(block: Block, routing: Mapping[str, Tensor]) -> Hooks:
    """Hooks that send tokens where `routing` says."""

    def send(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda module, args: (args[0], routing[path], *args[2:])

    return [(module, send(path)) for path, module in _experts(block) if path in routing]
