"""One layer's work, from what was observed of it to what is stored: a pure function, so it may run anywhere."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lowbit.core.errors import LowbitError
from lowbit.core.layer import quantize_layer
from lowbit.core.random import stream
from lowbit.core.records import Outcome
from lowbit.formats.checkpoint import stored_tensors
from lowbit.pipeline.plan import PlannedLayer


@dataclass(frozen=True)
class Task:
    """seed: of the run; tokens: calibration tokens that reached the layer; noted: outcomes of its statistic's state."""

    layer: PlannedLayer
    seed: int
    tokens: int
    noted: tuple[Outcome, ...]


@dataclass(frozen=True, eq=False)
class Solved:
    """tensors: packed, as they are stored; record: of the solve, JSON-ready; outcomes: those in the record."""

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]


def solve(task: Task, weight: Tensor, state: Any) -> Solved:
    """Quantize `weight` [N, K] by the layer's recipe, `state` being its statistic's; errors name layer and recipe."""
    started = time.perf_counter()
    layer = task.layer
    try:
        problem, outcomes = layer.recipe.statistic.problem(state, weight)
        solved = quantize_layer(problem, layer.recipe, stream(task.seed, layer.name))
        tensors = stored_tensors(solved)
    except LowbitError as error:
        raise type(error)(f"{layer.name} (recipe {layer.recipe.name}): {error}") from error
    outcomes = (*task.noted, *outcomes)
    outcomes = (*outcomes, *(outcome for outcome in solved.outcomes if outcome not in outcomes))
    record = {
        "shape": list(layer.shape),
        "recipe": layer.recipe.name,
        **solved.stats,
        "tokens": task.tokens,
        "seconds": round(time.perf_counter() - started, 4),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    return Solved(tensors, record, outcomes)
