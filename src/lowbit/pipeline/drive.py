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
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.errors import LowbitError
from lowbit.core.layer import QuantizedLayer, quantize_layer
from lowbit.core.parts import GRADIENTS, OF_ONE_LAYER, Observable, Statistic
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.core.records import Outcome
from lowbit.formats.checkpoint import restored_layer, stored_tensors
from lowbit.formats.files import file_digest, write_tensors_atomically
from lowbit.formats.shards import read_tensors
from lowbit.pipeline.activations import ATTENTION_PAIRS, BATCH_TOKENS, batches, store
from lowbit.pipeline.architecture import Block, set_weight, weight_of
from lowbit.pipeline.attention import ATTENTION
from lowbit.pipeline.capture import Call, Group, Stage, find_stages, record_calls, run_block, sibling
from lowbit.pipeline.gradients import gather_gradients
from lowbit.pipeline.journal import Journal
from lowbit.pipeline.observe import LOOKS_AT_ORIGINAL, States, Streams, gather
from lowbit.pipeline.plan import Plan, PlannedLayer, all_reads
from lowbit.pipeline.source import SourceModel

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""

CHECK_TOKENS = 64


@dataclass(frozen=True, eq=False)
class Run:
    """What stays the same over a run.

    windows: [samples, tokens]; work: the folder of unfinished work; budget: bytes of hidden states in memory.
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
    """Hidden states of the calibration windows and of the check, with every block's calls by number of windows."""

    quantized: Tensor
    full: Tensor | None
    check: Tensor
    calls: dict[int, list[Call]]
    check_calls: list[Call] = field(default_factory=list)


def quantize_blocks(run: Run) -> Tensor:
    """Quantize every planned layer; returns the check's logits [1, T, vocabulary] by the quantized model."""
    reads = run.reads
    gradients = _gradients(run) if reads & GRADIENTS else {}
    hidden = _embed(run, "float_inputs" in reads)
    counts = _token_counts(run.windows)
    done = 0
    for index, block in enumerate(run.source.blocks):
        run.source.load(block.module, block.name)
        original = None
        if reads & LOOKS_AT_ORIGINAL:
            original = Block(block.name, copy.deepcopy(block.module))
        call = functools.partial(_call_of, hidden.calls, index)
        streams = Streams(hidden.quantized, hidden.full, block, call, counts, original, run.batch_tokens)
        done = _quantize_block(run, streams, (hidden.check, hidden.check_calls[index]), done, gradients)
        streams.advance()
        hidden.check = run_block(block.module, hidden.check, hidden.check_calls[index])
        run.source.release(block.module)
    return _logits(run, hidden.check)


def _token_counts(windows: Tensor) -> Tensor:
    """How often each token of windows [samples, tokens] occurs in all of them; same shape."""
    _, index, counts = torch.unique(windows, return_inverse=True, return_counts=True)
    return counts[index]


def _gradients(run: Run) -> States:
    """The states of statistics that read gradients; none where all their layers are finished."""
    reading = [layer for layer in run.plan.layers if layer.recipe.statistic.reads & GRADIENTS]
    if all(_finished(run, layer.name) for layer in reading):
        return {}
    wanted = {layer.name: layer.recipe.statistic for layer in reading}
    total = len(run.windows)
    return gather_gradients(
        run.source, run.windows, wanted, lambda done: run.progress("gradients of the loss", done, total)
    )


def _call_of(calls: dict[int, list[Call]], index: int, windows: int) -> Call:
    return calls[windows][index]


def _embed(run: Run, full: bool) -> _Hidden:
    source, (samples, length) = run.source, run.windows.shape
    source.load_outside_blocks()
    check, check_calls = record_calls(source.model, source.blocks, run.check_ids)
    shape = (samples, length, check.shape[-1])
    hidden = _Hidden(store(shape, run.budget, run.work / "hidden"), None, check, {}, check_calls)
    for batch in batches(samples, length, run.batch_tokens):
        first, calls = record_calls(source.model, source.blocks, run.windows[batch])
        hidden.quantized[batch] = first
        hidden.calls.setdefault(len(first), calls)
    if full:
        hidden.full = store(shape, run.budget, run.work / "hidden-full").copy_(hidden.quantized)
    source.release(source.model)
    return hidden


def _quantize_block(run: Run, streams: Streams, check: tuple[Tensor, Call], done: int, gradients: States) -> int:
    planned = {layer.name: layer for layer in run.plan.blocks[streams.block.name]}
    linears = {name: module for name, module in streams.block.linears() if name in planned}
    for stage in _stages(find_stages(streams.block, linears, *check), planned):
        todo = {name for name in stage.layers if not _finished(run, name)}
        # Also those of layers that are done already: experts with few tokens share the statistics of all.
        states = gather(streams, _statistics(stage, planned), gradients) if todo else {}
        for group in stage.groups:
            for name in group.layers:
                if name in todo:
                    _solve(run, planned[name], linears[name], functools.partial(_problem, states, group, name))
                set_weight(linears[name], _read_layer(run, planned[name]).dequantize())
                done += 1
                run.progress("quantizing layers", done, len(run.plan.layers))
    return done


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


def _problem(
    states: States, group: Group, name: str, statistic: Statistic, weight: Tensor
) -> tuple[LayerProblem, tuple[Outcome, ...], int]:
    """The problem of a layer of `group`; an expert that saw fewer tokens than it has inputs gets all experts' state."""
    inputs, own = weight.shape[1], _sharing(statistic, group, name)
    state = states.get((own, statistic))
    state = statistic.init(inputs) if state is None else state
    tokens = statistic.tokens(state)
    shared: tuple[Outcome, ...] = ()
    siblings = [found for (other, kind), found in states.items() if kind == statistic and _are_siblings(other, own)]
    if statistic.reads and tokens < inputs and ".experts." in name and siblings:
        state = functools.reduce(statistic.merge, siblings, statistic.init(inputs))
        shared = (_few_tokens(tokens, inputs),)
    problem, outcomes = statistic.problem(state, weight)
    return problem, (*shared, *outcomes), tokens


def _are_siblings(other: Group, group: Group) -> bool:
    return [sibling(name) for name in other.layers] == [sibling(name) for name in group.layers]


def _few_tokens(tokens: int, inputs: int) -> Outcome:
    return Outcome(
        "few tokens",
        f"{tokens} calibration tokens reached this expert, fewer than its {inputs} inputs: "
        "the statistic of all experts of the block is used.",
        "Calibrate on more, or more varied, text.",
    )


def _solve(
    run: Run,
    layer: PlannedLayer,
    module: nn.Module,
    problem_of: Callable[[Statistic, Tensor], tuple[LayerProblem, tuple[Outcome, ...], int]],
) -> None:
    started = time.perf_counter()
    try:
        problem, outcomes, tokens = problem_of(layer.recipe.statistic, weight_of(module))
        solved = quantize_layer(problem, layer.recipe, stream(run.seed, layer.name))
        outcomes = (*outcomes, *(outcome for outcome in solved.outcomes if outcome not in outcomes))
        if run.strict and outcomes:
            raise LowbitError(f"--strict: {outcomes[0].detail} {outcomes[0].remedy}")
        path = layer_path(run.work, layer.name)
        digest = write_tensors_atomically(path, stored_tensors(solved), {})
    except LowbitError as error:
        raise type(error)(f"{layer.name} (recipe {layer.recipe.name}): {error}") from error
    record = {
        "shape": list(layer.shape),
        "recipe": layer.recipe.name,
        **solved.stats,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - started, 4),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    run.journal.record("layer", layer.name, {"sha256": digest, "record": record})


def layer_path(work: Path, name: str) -> Path:
    """The file of a finished layer."""
    return work / "layers" / f"{name}.safetensors"


def _finished(run: Run, name: str) -> bool:
    """Whether a layer is in the journal with its file whole."""
    entry, path = run.journal.get("layer", name), layer_path(run.work, name)
    return entry is not None and path.is_file() and file_digest(path) == entry["sha256"]


def _read_layer(run: Run, layer: PlannedLayer) -> QuantizedLayer:
    return restored_layer(layer.recipe, layer.shape, read_tensors(layer_path(run.work, layer.name)))


def _logits(run: Run, last_hidden: Tensor) -> Tensor:
    """The output head's logits for the last block's hidden states."""
    source = run.source
    source.load_outside_blocks()
    for block in source.blocks:
        block.module.forward = lambda *args, **kwargs: last_hidden
    try:
        with torch.no_grad():
            logits: Tensor = source.model(input_ids=run.check_ids, use_cache=False).logits
    finally:
        for block in source.blocks:
            del block.module.forward
    source.release(source.model)
    return logits


def layer_records(journal: Journal, plan: Plan) -> list[dict[str, Any]]:
    """What the journal says of each planned layer, in order."""
    return [{"name": layer.name, **journal.entries["layer", layer.name]["record"]} for layer in plan.layers]
