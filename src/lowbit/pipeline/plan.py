"""What a run would do, before any of it is done: every layer's recipe and size, what is left alone and why, and what
it will take. Reads headers only, so a shape that a recipe cannot hold is found in the first second.
"""

import fnmatch
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.parts import Observable
from lowbit.core.recipe import Recipe, to_dict
from lowbit.formats.checkpoint import stored_fields
from lowbit.pipeline.activations import ATTENTION_PAIRS, batches
from lowbit.pipeline.architecture import Block, architecture_of, shape_of
from lowbit.pipeline.attention import ATTENTION
from lowbit.pipeline.observe import LOOKS_AT_ORIGINAL
from lowbit.pipeline.source import SourceModel

# Read off runs on a 2-core machine: Python with torch and transformers loaded, and what storage gives at least.
_PROGRAM_BYTES = 450_000_000
_FILE_BYTES_PER_SECOND = 500_000_000
# Scores, masked and not, probabilities, and room to reduce them.
_ATTENTION_COPIES = 4
# Digest, solve, copy.
_PASSES_OVER_FILES = 3


@dataclass(frozen=True)
class Assignment:
    """Which layer gets which recipe.

    Patterns are shell patterns (`*.q_proj`) or, after `re:`, regular expressions, matched against whole layer names;
    a pattern without wildcards also matches as the name's last parts (`down_proj`).
    targets: only these (empty: all). ignore: not these. overrides: (pattern, recipe), the last that matches wins.
    """

    recipe: Recipe
    overrides: tuple[tuple[str, Recipe], ...] = ()
    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def recipe_for(self, name: str) -> Recipe | str:
        """The layer's recipe, or why it has none."""
        if self.targets and not any(matches(pattern, name) for pattern in self.targets):
            return "not among the targets"
        for pattern in self.ignore:
            if matches(pattern, name):
                return f"ignored by {pattern}"
        fitting = [recipe for pattern, recipe in self.overrides if matches(pattern, name)]
        return fitting[-1] if fitting else self.recipe

    def describe(self) -> dict[str, Any]:
        """JSON-ready data; its digest tells runs apart."""
        overrides = [[pattern, to_dict(recipe)] for pattern, recipe in self.overrides]
        return {
            "recipe": to_dict(self.recipe),
            "overrides": overrides,
            "targets": list(self.targets),
            "ignore": list(self.ignore),
        }


def matches(pattern: str, name: str) -> bool:
    """Whether a layer name fits a pattern (see Assignment)."""
    if pattern.startswith("re:"):
        try:
            return re.fullmatch(pattern[3:], name) is not None
        except re.error as error:
            raise BadRequest(f"Pattern {pattern!r} is not a regular expression: {error}.") from error
    return fnmatch.fnmatchcase(name, pattern) or name.endswith(f".{pattern}")


@dataclass(frozen=True)
class PlannedLayer:
    """name: path; shape: [N, K]; nbytes: as it will be stored, without bias."""

    name: str
    shape: tuple[int, int]
    recipe: Recipe
    nbytes: int

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.recipe.fields(self.shape), self.shape)


@dataclass(frozen=True)
class LeftAlone:
    """A tensor that stays as it is: its checkpoint key, shape, bytes and the reason."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """layers: to be quantized, in order; left_alone: everything else. Sizes in bytes."""

    layers: tuple[PlannedLayer, ...]
    left_alone: tuple[LeftAlone, ...]
    bytes_before: int
    parameters: int
    memory: int
    seconds: float
    blocks: Mapping[str, tuple[PlannedLayer, ...]] = field(repr=False, default_factory=dict)

    @property
    def bytes_after(self) -> int:
        return sum(layer.nbytes for layer in self.layers) + sum(tensor.nbytes for tensor in self.left_alone)

    @property
    def bits_per_weight(self) -> float:
        """Over the quantized layers, everything stored for them included."""
        return 8 * sum(layer.nbytes for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def bits_per_parameter(self) -> float:
        """Over the whole model."""
        return 8 * self.bytes_after / self.parameters


def make_plan(source: SourceModel, assignment: Assignment, samples: int, length: int, budget: int) -> Plan:
    """Plan to quantize `source` with `samples` calibration windows of `length` tokens and an activation budget.

    Raises BadRequest where nothing would be quantized or a recipe does not fit a layer, naming all such layers.
    """
    blocks: dict[str, tuple[PlannedLayer, ...]] = {}
    reasons: dict[str, str] = {}
    misfits: list[str] = []
    for block in source.blocks:
        blocks[block.name] = tuple(_planned(block, source, assignment, reasons, misfits))
    if misfits:
        shown = "\n".join(misfits[:8]) + (f"\n... and {len(misfits) - 8} more" if len(misfits) > 8 else "")
        raise BadRequest(
            f"{len(misfits)} layers do not fit the recipe. Change its settings, give these layers others with "
            f"--override, or leave them with --ignore:\n{shown}"
        )
    layers = tuple(layer for planned in blocks.values() for layer in planned)
    if not layers:
        raise BadRequest("No layer would be quantized: targets and ignore patterns leave none.")
    left = tuple(_left_alone(source, {f"{layer.name}.weight" for layer in layers}, reasons))
    memory, seconds = _forecast(source, blocks, samples, length, budget)
    parameters = sum(entry.nbytes // entry.dtype.itemsize for entry in source.shards.entries.values())
    return Plan(layers, left, source.shards.nbytes, parameters, memory, seconds, blocks)


def _planned(
    block: Block, source: SourceModel, assignment: Assignment, reasons: dict[str, str], misfits: list[str]
) -> list[PlannedLayer]:
    routers = architecture_of(source.model_type).routers
    planned = []
    for name, module in block.linears():
        shape, recipe = shape_of(module), assignment.recipe_for(name)
        if any(name.endswith(router) for router in routers):
            recipe = "a router: it chooses experts, and is tiny"
        if isinstance(recipe, str):
            reasons[f"{name}.weight"] = recipe
            continue
        try:
            recipe.check(shape)
        except BadRequest as error:
            misfits.append(f"  {name}: {error}")
            continue
        nbytes = sum(stored.nbytes for stored in stored_fields(recipe, shape).values())
        planned.append(PlannedLayer(name, shape, recipe, nbytes))
    return planned


def _left_alone(source: SourceModel, taken: set[str], reasons: dict[str, str]) -> list[LeftAlone]:
    inside = tuple(f"{block.name}." for block in source.blocks)
    names = {key: name for name, key in source.keys.items()}
    left = []
    for key, entry in source.shards.entries.items():
        name = names.get(key, key)
        if name not in taken:
            kind = "not a linear layer's weight" if name.startswith(inside) else "outside the decoder blocks"
            left.append(LeftAlone(key, entry.shape, entry.nbytes, reasons.get(name, kind)))
    return left


def _forecast(
    source: SourceModel, blocks: Mapping[str, tuple[PlannedLayer, ...]], samples: int, length: int, budget: int
) -> tuple[int, float]:
    """Peak bytes and seconds of a run."""
    tokens = samples * length if any(map(_reads, blocks.values())) else length
    batch = min(tokens, next(batches(samples, length)).stop * length)
    inside = [sum(p.numel() for p in block.module.parameters()) for block in source.blocks]
    outside = sum(p.numel() for p in source.model.parameters()) - sum(inside)
    hidden = min(4 * tokens * int(source.config.hidden_size), budget)
    largest = max(_block_bytes(n, blocks[b.name], batch) for n, b in zip(inside, source.blocks, strict=True))
    observing = _observing_bytes(source, blocks, max(inside), hidden, length)
    work = sum(_block_work(n, blocks[b.name], tokens) for n, b in zip(inside, source.blocks, strict=True))
    seconds = _PASSES_OVER_FILES * source.shards.nbytes / _FILE_BYTES_PER_SECOND + work / _multiply_adds_per_second()
    return _PROGRAM_BYTES + 4 * outside + hidden + largest + observing, seconds


def _observing_bytes(
    source: SourceModel, blocks: Mapping[str, tuple[PlannedLayer, ...]], block: int, hidden: int, length: int
) -> int:
    """What statistics need that look at more than inputs: hidden states of the original model, a copy of a block with
    `block` weights, attention's probabilities; the whole model and its row Hessians (float64) for gradients."""
    layers = [layer for planned in blocks.values() for layer in planned]
    reads = all_reads(layers)
    total = hidden if "float_inputs" in reads else 0
    total += 4 * block if reads & LOOKS_AT_ORIGINAL else 0
    if reads & ATTENTION:
        pairs = max(ATTENTION_PAIRS, length**2) * int(source.config.num_attention_heads)
        total += 4 * _ATTENTION_COPIES * pairs
    if "output_gradients" in reads:
        rows = sum(layer.shape[0] ** 2 for layer in layers if "output_gradients" in layer.recipe.statistic.reads)
        total += 8 * rows + 4 * sum(layer.weights for layer in layers)
    return total


def all_reads(layers: Iterable[PlannedLayer]) -> frozenset[Observable]:
    """Everything that any layer's statistic reads."""
    return frozenset[Observable]().union(*(layer.recipe.statistic.reads for layer in layers))


def _reads(planned: tuple[PlannedLayer, ...]) -> bool:
    return any(layer.recipe.statistic.reads for layer in planned)


def _block_bytes(weights: int, planned: tuple[PlannedLayer, ...], batch: int) -> int:
    """A block in float32, its Hessians (one an input width, float64), and the larger of solving its largest layer
    (weight, values, errors; factor and its copies) and running a batch through it (a few states as wide as a layer)."""
    if not planned:
        return 4 * weights
    widest = max(layer.shape[1] for layer in planned)
    hessians = 8 * sum(k * k for k in {layer.shape[1] for layer in planned}) if _reads(planned) else 0
    solving = max(12 * layer.weights for layer in planned) + (32 * widest * widest if _reads(planned) else 0)
    running = 4 * 6 * batch * max(max(layer.shape) for layer in planned)
    return 4 * weights + hessians + max(solving, running)


def _block_work(weights: int, planned: tuple[PlannedLayer, ...], tokens: int) -> float:
    """Multiply-adds: a pass over the tokens for each stage and one for outputs, second moments, factors, feedback."""
    if not _reads(planned):
        return float(weights * tokens)
    moments = tokens * sum(k * k for k in {layer.shape[1] for layer in planned})
    solves = sum(layer.weights * layer.shape[1] / 2 + 2 * layer.shape[1] ** 3 / 3 for layer in planned)
    return 5.0 * weights * tokens + moments + solves


def _multiply_adds_per_second() -> float:
    """Measured on a product of the kind that runs take their time with."""
    a, b = torch.ones(1024, 512), torch.ones(512, 512)
    a @ b
    started = time.perf_counter()
    for _ in range(4):
        a @ b
    return 4 * 1024 * 512 * 512 / (time.perf_counter() - started)
