"""Which recipes are practical on a machine: what a run takes beside what there is."""

import math
import re
from dataclasses import dataclass, replace

from lowbit import api
from lowbit.core.errors import require
from lowbit.core.fields import bits_per_weight
from lowbit.core.recipe import Recipe
from lowbit.pipeline.forecast import BlockWork, LayerWork, Workload, peak_memory, run_seconds
from lowbit.pipeline.machine import Machine
from lowbit.pipeline.quantize import Calibration, Options
from lowbit.report import numbers

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_VOCABULARY = 32_000
_HEAD_WIDTH = 128
_LENGTH = 2048
LONGEST_SECONDS = 16 * 3600
"""What takes longer than a night is not practical."""


@dataclass(frozen=True)
class Judgement:
    """What a recipe takes of a model, as forecast: bytes of memory and disk at the peak, seconds.

    lacking: which of "memory", "disk" and "time" there is too little of, each with what would help.
    """

    recipe: str
    model: str
    bits_per_weight: float
    memory: int
    disk: int
    seconds: float
    lacking: dict[str, str]


def judged(recipe: Recipe, model: str, work: Workload, machine: Machine) -> Judgement:
    """The judgement on a recipe for a model, of which `work` is the work."""
    memory, seconds = peak_memory(work), run_seconds(work)
    shapes = [layer.shape for layer in work.layers]
    stored = sum(bits_per_weight(recipe.fields(shape), shape) * shape[0] * shape[1] for shape in shapes)
    disk = int(2 * (stored / 8 + 2 * work.outside))
    lacking = {}
    if memory > machine.free_memory:
        lacking["memory"] = _less_memory(work, machine)
    if disk > machine.free_disk:
        lacking["disk"] = f"{numbers.size(disk)} must be free"
    if seconds > LONGEST_SECONDS:
        lacking["time"] = _less_time(work)
    bits = stored / sum(n * k for n, k in shapes)
    return Judgement(recipe.name, model, bits, memory, disk, seconds, lacking)


def _less_memory(work: Workload, machine: Machine) -> str:
    for samples in _fewer(work):
        if peak_memory(replace(work, samples=samples)) <= machine.free_memory:
            return f"--samples {samples} fits"
    return "needs a larger machine, whatever --samples; rtn needs the least"


def _less_time(work: Workload) -> str:
    for samples in _fewer(work):
        seconds = run_seconds(replace(work, samples=samples))
        if seconds <= LONGEST_SECONDS:
            return f"--samples {samples} takes {numbers.rough_duration(seconds)}"
    return "needs more cores, a GPU for calibration (--device cuda), or several machines (--cluster)"


def _fewer(work: Workload) -> list[int]:
    """Fewer calibration windows to try, not so few that statistics suffer much."""
    return [samples for samples in (64, 32, 16) if samples < work.samples and work.tokens]


def parameter_count(text: str) -> int:
    """The number that "8B", "1.5b", "400M" or "7000000" stands for; raises BadRequest for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMBT]?)", text.strip().upper())
    count = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    require(10**6 <= count <= 10**13, f"--parameters {text}: must be a size from 1M to 10T. Write it as 8B or 400M.")
    return count


def model_workload(model: str, recipe: Recipe, samples: int) -> Workload:
    """The work on a model at hand; raises BadRequest where it is none, or the recipe does not fit it."""
    return api.plan(model, recipe, calibration=Calibration(samples=samples)).workload


def llama_workload(parameters: int, recipe: Recipe, samples: int, length: int = _LENGTH) -> Workload:
    """The work on a Llama of about so many parameters, shaped as its authors shape them: the width is 128 times the
    number of blocks, and an MLP is 2 2/3 times as wide."""
    blocks = max(2, round((parameters / (12 * _HEAD_WIDTH**2)) ** (1 / 3)))
    width = max(256, round(math.sqrt(parameters / (12 * blocks)) / 256) * 256)
    inner = round(8 * width / 3 / 256) * 256
    attention = [LayerWork("self_attn", (width, width), recipe)] * 4
    mlp = [LayerWork("mlp", shape, recipe) for shape in ((inner, width), (inner, width), (width, inner))]
    layers = (*attention, *mlp)
    weights = sum(layer.weights for layer in layers)
    outside = 2 * _VOCABULARY * width
    return Workload(
        blocks=(BlockWork(weights, layers),) * blocks,
        outside=outside,
        width=width,
        heads=max(1, width // _HEAD_WIDTH),
        nbytes=2 * (blocks * weights + outside),
        samples=samples,
        length=length,
        budget=Options().budget,
    )
