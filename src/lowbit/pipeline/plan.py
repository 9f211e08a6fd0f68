"""What a run would do, before any of it is done: every layer's recipe and size, what is left alone and why.

Reads headers only, so a shape that a recipe cannot hold is found in the first second. What a run will take is
forecast when it is asked for.
"""

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.parts import Observable
from lowbit.core.recipe import Recipe, to_dict
from lowbit.formats.checkpoint import stored_fields
from lowbit.pipeline.architecture import Block, architecture_of, shape_of
from lowbit.pipeline.forecast import BlockWork, LayerWork, Workload, peak_memory, run_seconds
from lowbit.pipeline.source import SourceModel


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

    @property
    def work(self) -> LayerWork:
        return LayerWork(self.name.rpartition(".")[0], self.shape, self.recipe)


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
    workload: Workload
    blocks: Mapping[str, tuple[PlannedLayer, ...]] = field(repr=False, default_factory=dict)

    @functools.cached_property
    def memory(self) -> int:
        """Bytes resident at the peak of the run, as forecast."""
        return peak_memory(self.workload)

    @functools.cached_property
    def seconds(self) -> float:
        """Seconds that the run will take, measured on this machine when first asked for."""
        return run_seconds(self.workload)

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

    Raises BadRequest where nothing would be quantized, a pattern matches no layer, or a recipe does not fit a layer,
    naming all such layers.
    """
    _require_matches(source, assignment)
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
    workload = _workload(source, blocks, samples, length, budget)
    parameters = sum(entry.nbytes // entry.dtype.itemsize for entry in source.shards.entries.values())
    return Plan(layers, left, source.shards.nbytes, parameters, workload, blocks)


def _require_matches(source: SourceModel, assignment: Assignment) -> None:
    """Raise BadRequest for a pattern that matches no layer; `ignore` may also name what is left alone anyway."""
    layers = [name for block in source.blocks for name, _ in block.linears()]
    every = [*layers, *(name for name, _ in source.model.named_modules())]
    given = [("--override", pattern, layers) for pattern, _ in assignment.overrides]
    given += [("--targets", pattern, layers) for pattern in assignment.targets]
    given += [("--ignore", pattern, every) for pattern in assignment.ignore]
    for option, pattern, names in given:
        if not any(matches(pattern, name) for name in names):
            ends = sorted({name.rpartition(".")[2] for name in layers})
            raise BadRequest(
                f"{option} {pattern!r} matches no layer. Names end in {', '.join(ends)}; the first is {layers[0]}."
            )


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


def _workload(
    source: SourceModel, blocks: Mapping[str, tuple[PlannedLayer, ...]], samples: int, length: int, budget: int
) -> Workload:
    inside = [sum(p.numel() for p in block.module.parameters()) for block in source.blocks]
    work = tuple(
        BlockWork(weights, tuple(layer.work for layer in blocks[block.name]))
        for weights, block in zip(inside, source.blocks, strict=True)
    )
    config = source.config
    return Workload(
        blocks=work,
        outside=sum(p.numel() for p in source.model.parameters()) - sum(inside),
        width=int(config.hidden_size),
        heads=int(config.num_attention_heads),
        nbytes=source.shards.nbytes,
        samples=samples,
        length=length,
        budget=budget,
    )


def all_reads(layers: Iterable[PlannedLayer]) -> frozenset[Observable]:
    """Everything that any layer's statistic reads."""
    return frozenset[Observable]().union(*(layer.recipe.statistic.reads for layer in layers))
