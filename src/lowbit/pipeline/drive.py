"""The run: block by block, catch inputs, solve, store, replace, replay.

    hidden = embedding(windows)
    for each block:
        for each stage:  statistics of what it sees -> solve each layer -> write it, note it, put it in place
        hidden = block(hidden)

Only one block's weights are in memory (twice, where a statistic looks at the original block). A layer is written
before the next is solved, and what is put in place is what was written; a resumed run therefore sees the same
activations, statistics and codes as one that was never stopped.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.errors import LowbitError
from lowbit.core.layer import QuantizedLayer
from lowbit.core.parts import GRADIENTS, OF_ONE_LAYER, Observable, Statistic
from lowbit.core.random import stream
from lowbit.core.records import Outcome
from lowbit.formats.checkpoint import restored_layer
from lowbit.formats.files import file_digest, write_tensors_atomically
from lowbit.formats.shards import read_tensors
from lowbit.pipeline.activations import ATTENTION_PAIRS, BATCH_TOKENS, Room, batches, parts
from lowbit.pipeline.architecture import Block, set_weight, shape_of, weight_of
from lowbit.pipeline.attention import ATTENTION, watch_attention
from lowbit.pipeline.capture import Call, Group, Stage, final_logits, find_stages, record_calls, run_block, sibling
from lowbit.pipeline.device import CPU
from lowbit.pipeline.forecast import gradient_memory, solve_memory, watch_memory
from lowbit.pipeline.gradients import gather_gradients
from lowbit.pipeline.journal import Journal
from lowbit.pipeline.machine import return_freed_memory
from lowbit.pipeline.observe import LOOKS_AT_ORIGINAL, Gathered, States, Watched, Windows, advance, gather, merge
from lowbit.pipeline.plan import Plan, PlannedLayer, all_reads
from lowbit.pipeline.replay import find_tails
from lowbit.pipeline.solve import Solved, Task, solve
from lowbit.pipeline.source import SourceModel
from lowbit.pipeline.workers import Here, Needs, Workers

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""

CHECK_TOKENS = 64


@dataclass(frozen=True, eq=False)
class Run:
    """What stays the same over a run.

    windows: [samples, tokens]; work: the folder of unfinished work; budget: bytes of hidden states in memory; device:
    where windows run; workers: who observes and solves layers.
    """

    source: SourceModel
    plan: Plan
    windows: Tensor
    work: Path
    journal: Journal
    seed: int
    strict: bool
    budget: int
    progress: Progress
    device: torch.device = CPU
    workers: Workers = field(default_factory=Here)

    @property
    def reads(self) -> frozenset[Observable]:
        """Everything that any layer's statistic reads."""
        return all_reads(self.plan.layers)

    @property
    def batch_tokens(self) -> int:
        """How many tokens run through a block together."""
        return min(BATCH_TOKENS, ATTENTION_PAIRS // self.windows.shape[1]) if self.reads & ATTENTION else BATCH_TOKENS

    @property
    def check_ids(self) -> Tensor:
        """Token ids [1, T] for comparing the run's result with the finished folder; they need no text."""
        length = min(CHECK_TOKENS, self.source.context)
        return torch.randint(0, int(self.source.config.vocab_size), (1, length), generator=stream(0, "check"))


@dataclass(eq=False)
class _Hidden:
    """Calibration windows and the check [1, T, width] before a block, with every block's calls by number of windows.

    kept: room for what layers read, by part of the block; one block after the other uses it.
    """

    windows: Windows
    room: Room
    check: Tensor
    calls: dict[int, list[Call]]
    check_calls: list[Call]
    kept: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Passage:
    """A block and the windows before it. hidden: of all windows; windows: the parts of it, in order; parts: the same,
    shared; needs: of watching one."""

    watched: Watched
    hidden: _Hidden
    windows: list[Windows]
    parts: list[Any]
    needs: Needs
    check: tuple[Tensor, Call]


def quantize_blocks(run: Run) -> Tensor:
    """Quantize every planned layer; returns the check's logits [1, T, vocabulary] by the quantized model."""
    reads = run.reads
    gradients = _gradients(run) if reads & GRADIENTS else {}
    done = 0
    run.progress("quantizing layers", done, len(run.plan.layers))  # a first layer may take minutes
    hidden = _embed(run, "float_inputs" in reads)
    for index, block in enumerate(run.source.blocks):
        run.source.load(block.module, block.name)
        passage = _passage(run, hidden, index)
        done = _quantize_block(run, passage, gradients, done)
        _advance(run, hidden, passage)
        run.source.release(block.module)
        return_freed_memory()
    return _logits(run, hidden.check)


def _passage(run: Run, hidden: _Hidden, index: int) -> _Passage:
    """The passage of the windows through a block that is in its original weights."""
    block, check = run.source.blocks[index], (hidden.check, hidden.check_calls[index])
    original, feeding = None, frozenset[str]()
    if run.reads & LOOKS_AT_ORIGINAL:
        original = Block(block.name, copy.deepcopy(block.module))
    if original is not None and run.reads & ATTENTION:
        feeding = frozenset(watch_attention(original, *check).outputs)
    call = functools.partial(_call_of, {windows: calls[index] for windows, calls in hidden.calls.items()})
    windows = list(hidden.windows.parts(run.batch_tokens))
    parts = [run.workers.share(part) for part in windows]
    tails = find_tails(block, *check)
    needs = Needs(watch_memory(run.plan.workload, run.plan.workload.blocks[index]), run.device)
    watched = Watched(block, call, original, feeding, tails, run.batch_tokens, run.device)
    return _Passage(watched, hidden, windows, parts, needs, check)


def _advance(run: Run, hidden: _Hidden, passage: _Passage) -> None:
    """Replace the hidden states by the block's outputs."""
    watched = run.workers.share(passage.watched) if passage.parts else passage.watched
    for part in run.workers.map(advance, ((watched, part) for part in passage.parts), passage.needs):
        hidden.windows.put(part)
    hidden.check = run_block(passage.watched.block.module, *passage.check)


def _token_counts(windows: Tensor) -> Tensor:
    """How often each token of windows [samples, tokens] occurs in all of them; same shape."""
    _, index, counts = torch.unique(windows, return_inverse=True, return_counts=True)
    return counts[index]


def _gradients(run: Run) -> States:
    """The states of statistics that read gradients; none where all their layers are finished."""
    reading = [layer for layer in run.plan.layers if layer.recipe.statistic.reads & GRADIENTS]
    if all(is_finished(run, layer.name) for layer in reading):
        return {}
    wanted = {layer.name: layer.recipe.statistic for layer in reading}
    source, (total, length) = run.source, run.windows.shape
    source.load(source.model, "")
    source.model.tie_weights()
    model, needs = run.workers.share(source.model), Needs(gradient_memory(run.plan.workload), run.device)
    cut = list(parts(total, length))
    calls = ((model, run.windows[part], part.start, wanted, run.device) for part in cut)
    states: States = {}
    for part, found in zip(cut, run.workers.map(gather_gradients, calls, needs), strict=True):
        states = merge([states, found], {})
        run.progress("gradients of the loss", part.stop, total)
    source.release(source.model)
    return states


def _call_of(calls: dict[int, Call], windows: int) -> Call:
    return calls[windows]


def _embed(run: Run, full: bool) -> _Hidden:
    source, (samples, length) = run.source, run.windows.shape
    with source.outside_blocks() as model:
        check, check_calls = record_calls(model, source.blocks, run.check_ids)
        shape = (samples, length, check.shape[-1])
        room = Room(run.budget, run.work)
        quantized, by_windows = room.store(shape, "hidden"), dict[int, list[Call]]()
        for batch in batches(samples, length, run.batch_tokens):
            first, calls = record_calls(model, source.blocks, run.windows[batch])
            quantized[batch] = first
            by_windows.setdefault(len(first), calls)
    original = room.store(shape, "hidden-full").copy_(quantized) if full else None
    return _Hidden(Windows(quantized, original, _token_counts(run.windows)), room, check, by_windows, check_calls)


def _quantize_block(run: Run, passage: _Passage, gradients: States, done: int) -> int:
    block = passage.watched.block
    planned = {layer.name: layer for layer in run.plan.blocks[block.name]}
    linears = {name: module for name, module in block.linears() if name in planned}
    for stage in _stages(find_stages(block, linears, *passage.check), planned):
        todo = {name: planned[name] for name in stage.layers if not is_finished(run, name)}
        # Also those of layers that are done already: experts with few tokens share the statistics of all.
        states = _states(run, passage, stage, _statistics(stage, planned), gradients) if todo else {}
        return_freed_memory()
        needs = Needs(max((solve_memory(layer.work) for layer in todo.values()), default=0))
        solved = run.workers.map(solve, _tasks(run, stage, todo, linears, states), needs)
        for name in stage.layers:
            if name in todo:
                _keep(run, planned[name], next(solved))
            set_weight(linears[name], _read_layer(run, planned[name]).dequantize())
            done += 1
            run.progress("quantizing layers", done, len(run.plan.layers))
    return done


def _states(
    run: Run, passage: _Passage, stage: Stage, wanted: dict[Group, set[Statistic]], gradients: States
) -> States:
    """The state of each group's statistics over all windows; what need not run again is noted on the way."""
    if not wanted:
        return {}
    watched = run.workers.share(passage.watched)
    keep = _worth_keeping(passage, stage)
    found = run.workers.map(gather, ((watched, part, wanted, keep) for part in list(passage.parts)), passage.needs)
    return merge((_keep_inputs(run, passage, number, one) for number, one in enumerate(found)), gradients)


def _worth_keeping(passage: _Passage, stage: Stage) -> frozenset[str]:
    """The layers of a stage whose inputs are kept, to spare the modules that they end: those that fit in memory, or are
    hardly wider than hidden states, which the disk gives back sooner than attention is run again."""
    hidden, (samples, length, width) = passage.hidden, passage.hidden.windows.quantized.shape
    inputs = {name: shape_of(module)[1] for name, module in passage.watched.block.linears()}
    tails = passage.watched.tails.keys() & {group.layers[0] for group in stage.groups}
    # In a stage of several groups some may feed others, which then are not final.
    kept = frozenset(tails) if len(stage.groups) == 1 else frozenset()
    return frozenset(k for k in kept if inputs[k] <= 2 * width or hidden.room.left >= 4 * samples * length * inputs[k])


def _keep_inputs(run: Run, passage: _Passage, number: int, gathered: Gathered) -> States:
    """The states of a part, whose windows from now on hold what was kept of it."""
    before = passage.windows[number]
    kept = {name: _in_room(passage, number, name, "kept", x) for name, x in gathered.kept.items()}
    full = {name: _in_room(passage, number, name, "kept-full", x) for name, x in gathered.kept_full.items()}
    if kept or full:
        part = replace(before, kept={**before.kept, **kept}, kept_full={**before.kept_full, **full})
        passage.windows[number], passage.parts[number] = part, run.workers.share(part)
    return gathered.states


def _in_room(passage: _Passage, number: int, layer: str, kind: str, batches: list[Tensor]) -> Tensor:
    """What a layer read of a part's windows, moved to where all blocks keep it in turn."""
    hidden, part = passage.hidden, passage.windows[number]
    samples, length = hidden.windows.quantized.shape[:2]
    key = kind, layer.removeprefix(passage.watched.block.name), batches[0].shape[-1]
    if key not in hidden.kept:
        hidden.kept[key] = hidden.room.store((samples, length, key[2]), "".join(map(str, key)))
    place = hidden.kept[key][part.first : part.first + len(part.quantized)]
    return torch.cat(batches, out=place)


def _statistics(stage: Stage, planned: dict[str, PlannedLayer]) -> dict[Group, set[Statistic]]:
    """The statistics that read anything, by the layers that share their state."""
    wanted: dict[Group, set[Statistic]] = {}
    for group in stage.groups:
        for name in group.layers:
            statistic = planned[name].recipe.statistic
            if statistic.reads:
                wanted.setdefault(_sharing(statistic, group, name), set()).add(statistic)
    return wanted


def _sharing(statistic: Statistic, group: Group, name: str) -> Group:
    """The layers that share the statistic's state with layer `name` of `group`."""
    return Group((name,)) if statistic.reads & OF_ONE_LAYER else group


def _stages(found: list[Stage], planned: dict[str, PlannedLayer]) -> list[Stage]:
    """Stage by stage where any recipe asks for fresh inputs, else the whole block at once."""
    if any(layer.recipe.refresh == "input" for layer in planned.values()) or not found:
        return found
    return [Stage(tuple(group for stage in found for group in stage.groups))]


def _tasks(
    run: Run, stage: Stage, todo: dict[str, PlannedLayer], linears: dict[str, nn.Module], states: States
) -> Iterator[tuple[Task, Tensor, Any]]:
    """What `solve` takes, for each layer to do; an expert that saw fewer tokens than it has inputs gets all experts'
    state."""
    shared: dict[tuple[Group, Statistic], Any] = {}
    for group, name in ((one, name) for one in stage.groups for name in one.layers if name in todo):
        statistic, inputs = todo[name].recipe.statistic, todo[name].shape[1]
        key = own, _ = _sharing(statistic, group, name), statistic
        state = states[key] if key in states else statistic.init(inputs)
        tokens, noted, siblings = statistic.tokens(state), tuple[Outcome, ...](), []
        if statistic.reads and tokens < inputs and ".experts." in name:
            siblings = [found for (other, kind), found in states.items() if kind == statistic and _alike(other, own)]
        if siblings:
            key, noted = (_family(own), statistic), (_few_tokens(tokens, inputs),)
        if key not in shared:
            merged = functools.reduce(statistic.merge, siblings, statistic.init(inputs)) if siblings else state
            shared[key] = run.workers.share(merged)
        yield Task(todo[name], run.seed, tokens, noted), weight_of(linears[name]), shared[key]


def _alike(other: Group, group: Group) -> bool:
    return _family(other) == _family(group)


def _family(group: Group) -> Group:
    """The same for the same layers of all experts."""
    return Group(tuple(sibling(name) for name in group.layers))


def _few_tokens(tokens: int, inputs: int) -> Outcome:
    return Outcome(
        "few tokens",
        f"{tokens} calibration tokens reached this expert, fewer than its {inputs} inputs: "
        "the statistic of all experts of the block is used.",
        "Calibrate on more, or more varied, text.",
    )


def _keep(run: Run, layer: PlannedLayer, solved: Solved) -> None:
    """Write a solved layer and note that it is finished."""
    if run.strict and solved.outcomes:
        first = solved.outcomes[0]
        raise LowbitError(f"{layer.name} (recipe {layer.recipe.name}): --strict: {first.detail} {first.remedy}")
    digest = write_tensors_atomically(layer_path(run.work, layer.name), solved.tensors, {})
    run.journal.record("layer", layer.name, {"sha256": digest, "record": solved.record})


def layer_path(work: Path, name: str) -> Path:
    """The file of a finished layer."""
    return work / "layers" / f"{name}.safetensors"


def is_finished(run: Run, name: str) -> bool:
    """Whether a layer is in the journal, as good as the run demands, with its file whole."""
    entry, path = run.journal.get("layer", name), layer_path(run.work, name)
    if entry is None or (run.strict and entry["record"]["outcomes"]):
        return False
    return path.is_file() and file_digest(path) == entry["sha256"]


def _read_layer(run: Run, layer: PlannedLayer) -> QuantizedLayer:
    return restored_layer(layer.recipe, layer.shape, read_tensors(layer_path(run.work, layer.name)))


def _logits(run: Run, last_hidden: Tensor) -> Tensor:
    """The output head's logits for the last block's hidden states."""
    source = run.source
    with source.outside_blocks() as model:
        return final_logits(model, source.blocks, run.check_ids, last_hidden)


def layer_records(journal: Journal, plan: Plan) -> list[dict[str, Any]]:
    """What the journal says of each planned layer, in order."""
    return [{"name": layer.name, **journal.entries["layer", layer.name]["record"]} for layer in plan.layers]
