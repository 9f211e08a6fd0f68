"""What a run will take, from shapes alone: memory at its peak and time.

    memory = program + max(embedding, hidden states + the largest block + max(its statistics, solving, running it))
    time   = files + sum over layers of  tokens (passes N K + K^2) / products  +  dense(N, K)  +  N K * cost of a weight

Everything but the last term is the same for every recipe and counted in multiply-adds. What a weight costs depends
on the recipe's parts, which nothing here can name: a small layer of random weights is quantized, with more and more
outputs until that takes a moment, and timed (a trellis costs a thousand times what an integer does).
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch

from lowbit.core.errors import BadRequest
from lowbit.core.layer import quantize_layer
from lowbit.core.parts import GRADIENTS, Observable
from lowbit.core.problem import LayerProblem
from lowbit.core.recipe import Recipe
from lowbit.pipeline.activations import ATTENTION_PAIRS, batches
from lowbit.pipeline.attention import ATTENTION
from lowbit.pipeline.machine import product_speed
from lowbit.pipeline.observe import LOOKS_AT_ORIGINAL

# Compiled kernels, tokenizer and text, what the allocator keeps: read off runs (docs/LOG.md).
_PROGRAM_GROWTH = 400_000_000
# What storage gives at least; files are read for their digest, to solve and to copy.
_FILE_BYTES_PER_SECOND = 500_000_000
_PASSES_OVER_FILES = 3
# Scores, masked and not, probabilities, and room to reduce them.
_ATTENTION_COPIES = 4
# Of [K, K] in float64, at once: the state, H, what its factor grows in, the factor and one of whoever uses it.
_HESSIAN_COPIES = 5
# Products with vectors take so many times as long as products of matrices.
_VECTOR_PENALTY = 4
# A trial takes at least this long in seconds, or has all the layer's outputs.
_LONG_ENOUGH = 0.2
_TRIAL_INPUTS, _TRIAL_OUTPUTS = 256, 128


@dataclass(frozen=True)
class LayerWork:
    """A layer [N, K] to quantize; `parent` is the path of the module it is in."""

    parent: str
    shape: tuple[int, int]
    recipe: Recipe

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class BlockWork:
    """A block of `weights` weights in all and those of its layers that are to be quantized."""

    weights: int
    layers: tuple[LayerWork, ...]


@dataclass(frozen=True)
class Workload:
    """outside: weights outside the blocks; width: of hidden states; heads: of attention; nbytes: of all files;
    samples, length: calibration windows and their tokens; budget: bytes of hidden states kept in memory."""

    blocks: tuple[BlockWork, ...]
    outside: int
    width: int
    heads: int
    nbytes: int
    samples: int
    length: int
    budget: int

    @property
    def layers(self) -> Iterable[LayerWork]:
        return (layer for block in self.blocks for layer in block.layers)

    @property
    def reads(self) -> frozenset[Observable]:
        """Everything that any layer's statistic reads."""
        return frozenset[Observable]().union(*(layer.recipe.statistic.reads for layer in self.layers))

    @property
    def tokens(self) -> int:
        """Calibration tokens; none where no statistic reads any."""
        return self.samples * self.length if self.reads else 0


def peak_memory(work: Workload) -> int:
    """Bytes resident at the peak of a run, this process's present ones included."""
    hidden = min(4 * work.tokens * work.width, work.budget) * (2 if "float_inputs" in work.reads else 1)
    largest = max(_block_memory(work, block) for block in work.blocks)
    program = int(psutil.Process().memory_info().rss) + _PROGRAM_GROWTH
    return program + hidden + _gradient_memory(work) + max(4 * work.outside, largest)


def run_seconds(work: Workload) -> float:
    """Seconds of a run on this machine, as busy as it is now; takes about a second for each recipe to find out."""
    products = product_speed(torch.float32, 0.1)
    costs: dict[tuple[Recipe, tuple[int, int]], float] = {}
    encoding = 0.0
    for layer in work.layers:
        key = layer.recipe, layer.shape
        if key not in costs:
            costs[key] = seconds_per_weight(*key)
        encoding += layer.weights * costs[key]
    dense = sum(_block_work(work, block) for block in work.blocks)
    return _PASSES_OVER_FILES * work.nbytes / _FILE_BYTES_PER_SECOND + dense / products + encoding


def seconds_per_weight(recipe: Recipe, shape: tuple[int, int]) -> float:
    """What one weight of a layer [N, K] costs beside dense algebra, tried on a part of such a layer."""
    inputs = _trial_inputs(recipe, shape)
    outputs = _trial_outputs(recipe, shape[0], inputs)
    _trial(recipe, (outputs, inputs))
    while True:
        seconds = _trial(recipe, (outputs, inputs))
        more = min(4 * outputs, shape[0])
        if seconds > _LONG_ENOUGH or more == outputs or not _fits(recipe, (more, inputs)):
            return seconds / (outputs * inputs)
        outputs = more


def _trial(recipe: Recipe, shape: tuple[int, int]) -> float:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    problem = LayerProblem(weight, torch.eye(shape[1], dtype=torch.float64), sensitivity=torch.ones_like(weight))
    started = time.perf_counter()
    quantize_layer(problem, recipe, generator)
    return time.perf_counter() - started


def _trial_inputs(recipe: Recipe, shape: tuple[int, int]) -> int:
    """The fewest inputs, a divisor of the layer's, that the recipe fits."""
    fewest, k = math.gcd(shape[1], _TRIAL_INPUTS), shape[1]
    candidates = [fewest << i for i in range(16) if fewest << i < k and k % (fewest << i) == 0]
    return next((inputs for inputs in candidates if inputs >= 64 and _fits(recipe, (shape[0], inputs))), k)


def _trial_outputs(recipe: Recipe, most: int, inputs: int) -> int:
    outputs = min(_TRIAL_OUTPUTS, most)
    return outputs if _fits(recipe, (outputs, inputs)) else most


def _fits(recipe: Recipe, shape: tuple[int, int]) -> bool:
    try:
        recipe.check(shape)
    except BadRequest:
        return False
    return True


def _block_work(work: Workload, block: BlockWork) -> float:
    """Multiply-adds in float32 of running and watching a block, and of its layers' dense algebra."""
    streams = 2 if "float_inputs" in work.reads else 1
    widths = _widths(block)
    stages = len(widths) + 1 if any(layer.recipe.refresh == "input" for layer in block.layers) else 1
    # A stage runs the block as far as its inputs, so half of it on average; then once to its end.
    passes = streams * (stages / 2 + 1)
    moments = streams * sum(width**2 for _, width in widths)
    return work.tokens * (passes * block.weights + moments) + sum(_dense_work(layer) for layer in block.layers)


def _dense_work(layer: LayerWork) -> float:
    """Of a solve, in units of float32 multiply-adds: feedback N K^2 / 2; twice as dear in float64, two losses N K^2 and
    a factor K^3 / 3; eigenvalues 4/3 K^3, half of them in products with vectors."""
    n, k = layer.shape
    if not layer.recipe.statistic.reads:
        return 4.0 * n * k * k
    return 4.5 * n * k * k + 2 / 3 * k**3 + 4 / 3 * (1 + _VECTOR_PENALTY) * k**3


def _widths(block: BlockWork) -> set[tuple[str, int]]:
    """Inputs by where they are and how wide: about as many as there are different ones."""
    return {(layer.parent, layer.shape[1]) for layer in block.layers if layer.recipe.statistic.reads}


def _block_memory(work: Workload, block: BlockWork) -> int:
    """The block, and the most of what lies beside it."""
    solving = max((solve_memory(layer) - _moment_memory(layer) for layer in block.layers), default=0)
    return max(watch_memory(work, block), _weights_memory(work, block) + _state_memory(work, block) + solving)


def _weights_memory(work: Workload, block: BlockWork) -> int:
    """The block in float32, and a copy where statistics look at the original."""
    return 4 * block.weights * (2 if work.reads & LOOKS_AT_ORIGINAL else 1)


def watch_memory(work: Workload, block: BlockWork) -> int:
    """Bytes of a block with the statistics of its layers while windows run through it."""
    weights = _weights_memory(work, block)
    if not block.layers:
        return weights
    batch = next(batches(work.samples, work.length)).stop * work.length if work.tokens else work.length
    running = 4 * 6 * batch * max(max(layer.shape) for layer in block.layers)
    running += (
        4 * _ATTENTION_COPIES * max(ATTENTION_PAIRS, work.length**2) * work.heads if work.reads & ATTENTION else 0
    )
    return weights + _state_memory(work, block) + running


def _state_memory(work: Workload, block: BlockWork) -> int:
    """Statistics that are alive together: of one stage, or of the whole block where inputs are not refreshed."""
    squares = [8 * width**2 for _, width in _widths(block)]
    if not squares:
        return 0
    kinds = 2 if "float_inputs" in work.reads else 1
    staged = any(layer.recipe.refresh == "input" for layer in block.layers)
    return kinds * (max(squares) if staged else sum(squares))


def solve_memory(layer: LayerWork) -> int:
    """Bytes that solving a layer takes, its statistic among them."""
    return _HESSIAN_COPIES * _moment_memory(layer) + 4 * 5 * layer.weights


def _moment_memory(layer: LayerWork) -> int:
    return 8 * layer.shape[1] ** 2 if layer.recipe.statistic.reads else 0


def _gradient_memory(work: Workload) -> int:
    """The whole model, its row Hessians and its weights' sensitivity, where gradients are looked at."""
    if not work.reads & GRADIENTS:
        return 0
    rows = sum(x.shape[0] ** 2 for x in work.layers if "output_gradients" in x.recipe.statistic.reads)
    squares = sum(math.prod(x.shape) for x in work.layers if "weight_gradients" in x.recipe.statistic.reads)
    return 8 * rows + 4 * squares + 4 * sum(block.weights for block in work.blocks)
