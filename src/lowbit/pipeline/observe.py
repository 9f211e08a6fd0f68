"""What a stage's statistics see: calibration windows run through a block, batch by batch, observed and reduced.

    state = merge of gather(watched, part).states over the parts of the windows, in order

`gather` and `advance` are pure: they may run anywhere, on an accelerator too, from and to the processor's memory. What
a part is depends on the calibration alone, so that sums are the same wherever, and by however many, parts are summed.

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
from lowbit.core.linalg import all_finite
from lowbit.core.parts import Observable, Observed, Statistic
from lowbit.pipeline.activations import BATCH_TOKENS, batches, parts
from lowbit.pipeline.architecture import Block
from lowbit.pipeline.attention import ATTENTION, Attention, watch_attention
from lowbit.pipeline.capture import Call, Group, hooks, run_block
from lowbit.pipeline.device import CPU, computing_on, fetched, sent
from lowbit.pipeline.machine import return_freed_memory
from lowbit.pipeline.replay import Kept, Tail, replayed
from lowbit.runtime.experts import LinearExperts

LOOKS_AT_ORIGINAL: frozenset[Observable] = ATTENTION | {"float_inputs"}
"""The observables for which a block is kept in its original weights."""

States = dict[tuple[Group, Statistic], Any]


class _StopForward(Exception):
    """Raised by the last hook of a stage: nothing after it is needed."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Some calibration windows on their way through the blocks.

    quantized: hidden states [S, T, width] as the quantized prefix produces them. full: the same in the original model,
    or None where no statistic reads them. token_counts: [S, T]. first: the number of the first window. kept, kept_full:
    what layers of the block before which they are read in it, where that is final, and in the original block.
    """

    quantized: Tensor
    full: Tensor | None
    token_counts: Tensor
    first: int = 0
    kept: Kept = field(default_factory=dict)
    kept_full: Kept = field(default_factory=dict)

    def part(self, chosen: slice) -> "Windows":
        """The windows of a slice, counted from the first of these; views, no copies."""
        full = None if self.full is None else self.full[chosen]
        kept, kept_full = ({name: x[chosen] for name, x in found.items()} for found in (self.kept, self.kept_full))
        return Windows(
            self.quantized[chosen], full, self.token_counts[chosen], self.first + chosen.start, kept, kept_full
        )

    def put(self, part: "Windows") -> None:
        """Overwrite the hidden states of a part of these by those that it has now."""
        place = slice(part.first - self.first, part.first - self.first + len(part.quantized))
        self.quantized[place] = part.quantized
        if self.full is not None and part.full is not None:
            self.full[place] = part.full

    def batches(self, tokens: int) -> Iterator["Windows"]:
        """What runs through a block together, in order."""
        return map(self.part, batches(len(self.quantized), self.quantized.shape[1], tokens))

    def parts(self, tokens: int) -> Iterator["Windows"]:
        """What is summed together, in order: whole batches."""
        return map(self.part, parts(len(self.quantized), self.quantized.shape[1], tokens))

    def require_finite(self, x: Tensor, where: str) -> None:
        """Raise BadRequest naming layer and calibration window where x [t, K], seen of these, holds NaN or Inf."""
        if not all_finite(x):
            finite = torch.isfinite(x).all(-1)
            # Experts see some tokens of the batch only: then the window is one of the batch.
            first, last = self.first, self.first + len(self.quantized) - 1
            if len(x) == len(self.quantized) * self.quantized.shape[1]:
                first = last = first + int(finite.long().argmin()) // self.quantized.shape[1]
            window = f"window {first}" if first == last else f"one of the windows {first} to {last}"
            raise BadRequest(
                f"{where}: activations hold NaN or Inf in calibration {window}. "
                "Look at that window's text, or at the model's weights."
            )


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


@dataclass(frozen=True, eq=False)
class Watched:
    """A block through which windows run, and what is seen of it.

    call: its arguments for so many windows. original: the block in its original weights, or None where nothing looks
    at it. feeding: the layers that feed its attention. tails: modules that need not run where the windows hold what
    their last layer reads. batch_tokens: run together. device: where.
    """

    block: Block
    call: Callable[[int], Call]
    original: Block | None = None
    feeding: frozenset[str] = frozenset()
    tails: Mapping[str, Tail] = field(default_factory=dict)
    batch_tokens: int = BATCH_TOKENS
    device: torch.device = CPU

    def observe(self, batch: Windows, names: list[str], needed: frozenset[Observable]) -> Scene:
        """Run a batch for what `needed` names of layers `names`."""
        hidden, routing = batch.quantized, dict[str, Tensor]()
        call = self.call(len(hidden))
        with replayed(self.block, self.tails, batch.kept):
            inputs = _inputs(self.block, names, hidden, call, _recorded(self.block, routing))
        for name, x in inputs.items():
            batch.require_finite(x, name)
        float_inputs: Mapping[str, Tensor] = {}
        if "float_inputs" in needed and batch.full is not None and self.original is not None:
            with replayed(self.original, self.tails, batch.kept_full):
                float_inputs = _inputs(self.original, list(inputs), batch.full, call, _sent(self.original, routing))
        attention = self._attention(names, needed, hidden, call)
        shape = hidden.shape[0], hidden.shape[1]
        return Scene(needed, shape, inputs, float_inputs, routing, batch.token_counts, attention)

    def _attention(
        self, names: list[str], needed: frozenset[Observable], hidden: Tensor, call: Call
    ) -> Attention | None:
        """The block's attention, where there is anything of it to be seen for layers `names`."""
        concerned = "attention" in needed or (needed & ATTENTION and self.feeding.intersection(names))
        return watch_attention(self.original, hidden, call) if self.original is not None and concerned else None


@dataclass(frozen=True, eq=False)
class Gathered:
    """states: none where no token reached a group. kept, kept_full: what layers read, in the block and in its original,
    batch by batch."""

    states: States
    kept: dict[str, list[Tensor]]
    kept_full: dict[str, list[Tensor]]


@torch.no_grad()
def gather(
    watched: Watched, windows: Windows, wanted: Mapping[Group, set[Statistic]], keep: frozenset[str] = frozenset()
) -> Gathered:
    """The state of each group's statistics over the windows, and what the layers `keep`, one of each group, read."""
    gathered = Gathered({}, {}, {})
    needed = frozenset[Observable]().union(*(one.reads for found in wanted.values() for one in found))
    with computing_on(watched.device):
        placed = sent(watched, watched.device) if needed else watched
        for batch in windows.batches(watched.batch_tokens) if needed else ():
            scene = placed.observe(sent(batch, watched.device), [group.layers[0] for group in wanted], needed)
            for name in keep:
                _keep(gathered.kept, name, scene.inputs, scene.shape)
                _keep(gathered.kept_full, name, scene.float_inputs, scene.shape)
            _update(gathered.states, wanted, scene)
            return_freed_memory()
        return fetched(gathered, watched.device)


def _update(states: States, wanted: Mapping[Group, set[Statistic]], scene: Scene) -> None:
    """Add a batch to the state of each group's statistics."""
    for group, statistics in wanted.items():
        seen = scene.of(group.layers[0])
        for statistic in statistics if seen else ():
            state = states.get((group, statistic))
            state = statistic.init(seen["inputs"].shape[1]) if state is None else state
            observed = {one: seen[one] for one in seen.keys() & statistic.reads}
            states[group, statistic] = statistic.update(state, observed)


def _keep(kept: dict[str, list[Tensor]], name: str, inputs: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
    """Note what a layer read of a batch of S windows of T tokens, if it met all of them."""
    if name in inputs and len(inputs[name]) == shape[0] * shape[1]:
        kept.setdefault(name, []).append(inputs[name].view(*shape, -1).cpu())


def merge(parts: Iterable[States], started: States) -> States:
    """The states of parts that follow each other as one, going on from those in `started`; in order, one by one."""
    states: States = {}
    for part in parts:
        _merge(states, part, started)
    return states


def _merge(states: States, part: States, started: States) -> None:
    """Take a part's states over, one by one, so that it holds none while the next part is gathered."""
    for key in list(part):
        found, before = part.pop(key), states.get(key, started.get(key))
        states[key] = found if before is None else key[1].merge(before, found)


@torch.no_grad()
def advance(watched: Watched, windows: Windows) -> Windows:
    """The windows behind the block: its outputs for hidden states."""
    quantized, full = [], []
    with computing_on(watched.device):
        placed = sent(watched, watched.device)
        block, original = placed.block, placed.original
        for batch in (sent(one, watched.device) for one in windows.batches(watched.batch_tokens)):
            call = placed.call(len(batch.quantized))
            with replayed(block, placed.tails, batch.kept):
                output = run_block(block.module, batch.quantized, call)
            batch.require_finite(output.flatten(0, 1), f"{block.name} (output)")
            quantized.append(output.cpu())
            if batch.full is not None and original is not None:
                with replayed(original, placed.tails, batch.kept_full):
                    full.append(run_block(original.module, batch.full, call).cpu())
            return_freed_memory()
    return Windows(torch.cat(quantized), torch.cat(full) if full else None, windows.token_counts, windows.first)


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


def _sent(block: Block, routing: Mapping[str, Tensor]) -> Hooks:
    """Hooks that send tokens where `routing` says."""

    def send(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda module, args: (args[0], routing[path], *args[2:])

    return [(module, send(path)) for path, module in _experts(block) if path in routing]
