"""What a run will take, from shapes alone: memory at its peak and time.

    memory = program + activations + the largest block + max(its statistics and running it, solving)
    time   = dense algebra in float32 and in float64, at the speeds of products of this machine
             + bytes of files and of what lies between products + N K * cost of a weight, summed over layers

Everything but the last term is the same for every recipe and counted in multiply-adds and bytes. What a weight costs
depends on the recipe's parts, which nothing here can name: small layers of random weights, of more and more outputs,
are quantized until that takes a moment, and what more outputs take longer is what weights cost (a trellis costs a
thousand times what an integer does); what a layer takes whatever its outputs is dense algebra, counted already.
"""

import functools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch

from lowbit.core.errors import BadRequest
from lowbit.core.layer import SAMPLED_ROWS, quantize_layer
from lowbit.core.limit import MOST_EIGENVALUES
from lowbit.core.parts import GRADIENTS, Observable
from lowbit.core.problem import LayerProblem
from lowbit.core.recipe import Recipe
from lowbit.pipeline.activations import ATTENTION_PAIRS, batches, parts
from lowbit.pipeline.attention import ATTENTION
from lowbit.pipeline.machine import mean_time, product_speed
from lowbit.pipeline.observe import LOOKS_AT_ORIGINAL

# Compiled kernels, tokenizer and text, and what is freed and kept: read off runs (docs/LOG.md).
_PROGRAM_GROWTH = 130_000_000
# What storage gives at least; files are read for their digest, to solve and to copy.
_FILE_BYTES_PER_SECOND = 500_000_000
_PASSES_OVER_FILES = 3
# Scores, masked and not, probabilities, and room to reduce them.
_ATTENTION_COPIES = 4
# What an MLP makes of a batch, of its widest kind, at once.
_BATCH_COPIES = 3
# Of [K, K] in float64 while a layer is solved: H and its factor; two more where a transform makes another H.
_HESSIAN_COPIES = 2
_TRANSFORM_COPIES = 2
# Of [N, K] in float32, or their worth.
_WEIGHT_COPIES = 4
# How often a batch passes a block's weights, where not stage by stage, or where experts share it.
_PASSES = 2.0
# What runs between products and around them: bytes a second, most of them of memory that is new.
_BYTES_PER_SECOND = 2_000_000_000
_WEIGHT_TOUCHES = 20
# Opening, text, tokenizer, assembling and checking, whatever the model's size.
_SMALL_SECONDS = 2.0
# Beside square products: of second moments, which are taken in narrow bands; of rounders, in narrow slabs; in float64.
_MOMENT_PENALTY, _SLAB_PENALTY, _DOUBLE_PENALTY = 1.5, 2.0, 1.25
# Eigenvalues are products with vectors for one half, and those take so many times as long as products of matrices.
_VECTOR_PENALTY = 2
# A trial takes at least this long in seconds, or has all the layer's outputs.
_LONG_ENOUGH = 0.2
_TRIAL_INPUTS, _TRIAL_OUTPUTS, _MOST_TRIAL_OUTPUTS = 256, 128, 2048
_TRIAL_SECONDS = 0.3


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
    largest = max(_block_memory(work, block) for block in work.blocks)
    program = int(psutil.Process().memory_info().rss) + _PROGRAM_GROWTH
    return program + _gradient_states(work) + max(gradient_memory(work), activation_memory(work) + largest)


def activation_memory(work: Workload) -> int:
    """Bytes of hidden states, and of what layers read that is kept beside them, in memory: within the budget."""
    held = 0
    for width in (work.width, *_kept_widths(work)) * (2 if "float_inputs" in work.reads else 1):
        needed = 4 * work.tokens * width
        held += needed if held + needed <= work.budget else 0
    return held


def _kept_widths(work: Workload) -> list[int]:
    """Inputs of the layers that end a block's parts, where they are kept: stage by stage (see `pipeline.replay`)."""
    block = max(work.blocks, key=lambda block: block.weights)
    if not _is_staged(block) or not work.tokens:
        return []
    ends: dict[str, int] = {}
    for layer in block.layers:
        if layer.shape[0] == work.width and ".experts." not in layer.parent:
            ends[layer.parent] = max(layer.shape[1], ends.get(layer.parent, 0))
    return sorted(ends.values())


@dataclass(frozen=True)
class Algebra:
    """Multiply-adds in float32 and in float64, and bytes that are written or read between them."""

    single: float = 0.0
    double: float = 0.0
    nbytes: float = 0.0

    def __add__(self, other: "Algebra") -> "Algebra":
        return Algebra(self.single + other.single, self.double + other.double, self.nbytes + other.nbytes)


def run_seconds(work: Workload) -> float:
    """Seconds of a run on this machine, as busy as it is now; takes about a second for each recipe to find out."""
    costs: dict[tuple[Recipe, tuple[int, int]], float] = {}
    encoding = 0.0
    for layer in work.layers:
        key = layer.recipe, layer.shape
        if key not in costs:
            costs[key] = seconds_per_weight(*key)
        encoding += layer.weights * costs[key]
    dense = sum((_block_algebra(work, block) for block in work.blocks), Algebra())
    speeds = [product_speed(dtype, _TRIAL_SECONDS, mean_time) for dtype in (torch.float32, torch.float64)]
    products = dense.single / speeds[0] + _DOUBLE_PENALTY * dense.double / speeds[1] + dense.nbytes / _BYTES_PER_SECOND
    files = _PASSES_OVER_FILES * work.nbytes / _FILE_BYTES_PER_SECOND
    return _SMALL_SECONDS + files + products + encoding


def seconds_per_weight(recipe: Recipe, shape: tuple[int, int]) -> float:
    """What one weight of a layer [N, K] costs beside dense algebra, tried on a part of such a layer."""
    inputs = _trial_inputs(recipe, shape)
    most = min(_MOST_TRIAL_OUTPUTS, shape[0])
    return _cost_of_trial(recipe, inputs, most if _fits(recipe, (most, inputs)) else shape[0])


@functools.cache
def _cost_of_trial(recipe: Recipe, inputs: int, most: int) -> float:
    """Seconds a weight of so many inputs, from as many outputs as it takes to tell, at most `most`, and fewer."""
    outputs = _trial_outputs(recipe, most, inputs)
    _trial(recipe, (outputs, inputs))
    before = _trial(recipe, (outputs, inputs))
    while True:
        more = min(4 * outputs, most)
        if more == outputs or not _fits(recipe, (more, inputs)):
            return before / (outputs * inputs)  # no fewer outputs to tell what does not depend on them
        seconds = _trial(recipe, (more, inputs))
        if seconds > _LONG_ENOUGH or 4 * more > most:
            return max(0.0, seconds - before) / ((more - outputs) * inputs)
        outputs, before = more, seconds


def _trial(recipe: Recipe, shape: tuple[int, int]) -> float:
    problem = _random_problem(shape)
    started = time.perf_counter()
    quantize_layer(problem, recipe, torch.Generator().manual_seed(0))
    return time.perf_counter() - started


def _random_problem(shape: tuple[int, int]) -> LayerProblem:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return LayerProblem(weight, torch.eye(shape[1], dtype=torch.float64), sensitivity=torch.ones_like(weight))


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


def _block_algebra(work: Workload, block: BlockWork) -> Algebra:
    """Of running and watching a block, and of its layers' dense algebra."""
    layers = sum((_layer_algebra(layer) for layer in block.layers), _watching(work, block))
    return layers + sum((_hessian_algebra(k) for k in _factored_widths(block)), Algebra())


def _watching(work: Workload, block: BlockWork) -> Algebra:
    """Windows through a block, and its second moments."""
    streams = 2 if "float_inputs" in work.reads else 1
    squares = sum(width**2 for width in input_widths(block))
    attention = (1 if _is_staged(block) else 2) * 2 * work.length * work.width
    moments = _MOMENT_PENALTY * squares * (1 / 2 if streams == 1 else 3 / 2)
    sums = len(list(parts(work.samples, work.length))) if work.tokens else 0
    touched = 4 * work.tokens * streams * sum(sum(layer.shape) for layer in block.layers)
    return Algebra(
        work.tokens * (streams * (_passed_weights(work, block) + attention) + moments),
        nbytes=touched + 8 * streams * sums * squares,
    )


def _passed_weights(work: Workload, block: BlockWork) -> float:
    """How many weights a token meets while a block is quantized.

    Stage by stage, each module of a block is run twice more for each module behind it and once more at the end. Where
    what its last layer reads is kept (see `pipeline.replay`), all of it is run once and that layer as often as ever.
    """
    modules: dict[str, list[LayerWork]] = {}
    for layer in block.layers:
        modules.setdefault(layer.parent, []).append(layer)
    if not _is_staged(block) or any(".experts." in parent for parent in modules):
        return _PASSES * block.weights
    kept = 4 * work.tokens * (work.width + sum(_kept_widths(work))) <= work.budget
    met = 0.0
    for behind, layers in enumerate(reversed(modules.values())):
        inner = 1 if kept or layers[-1].shape[1] <= 2 * work.width else 2 * behind + 2
        met += inner * sum(layer.weights for layer in layers[:-1]) + (2 * behind + 1) * layers[-1].weights
    return met


def _layer_algebra(layer: LayerWork) -> Algebra:
    """A rounder's feedback and its bound, the loss in float64, that of zeros and, of a few rows, that to nearest."""
    n, k = layer.shape
    half = k * k / 2
    return Algebra(
        (n * (_SLAB_PENALTY + 2) + SAMPLED_ROWS) * half,
        (n + SAMPLED_ROWS) * half,
        4 * _WEIGHT_TOUCHES * layer.weights,
    )


def _factored_widths(block: BlockWork) -> list[int]:
    """K of each Hessian that is factored: shared by the layers that read one input, unless transforms change it."""
    changed = [
        layer.shape[1] for layer in block.layers if layer.recipe.statistic.reads and _makes_another_hessian(layer)
    ]
    return changed or input_widths(block)


def _hessian_algebra(k: int) -> Algebra:
    """Of what layers with the same K inputs share: a factor K^3 / 6, and for the limit as much again or the
    eigenvalues, 2/3 K^3."""
    limit = 2 / 3 * (1 + _VECTOR_PENALTY) / 2 if k <= MOST_EIGENVALUES else 1 / 6
    return Algebra(double=(1 / 6 + limit) * k**3)


def input_widths(block: BlockWork) -> list[int]:
    """Of each different input that is observed: the first layer of a module reads one, the last another."""
    widths: dict[str, list[int]] = {}
    for layer in block.layers:
        if layer.recipe.statistic.reads:
            widths.setdefault(layer.parent, []).append(layer.shape[1])
    return [width for found in widths.values() for width in (found[:1] if len(found) == 1 else (found[0], found[-1]))]


def _is_staged(block: BlockWork) -> bool:
    return any(layer.recipe.refresh == "input" for layer in block.layers)


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
    running = 4 * _BATCH_COPIES * batch * max(max(layer.shape) for layer in block.layers)
    running += (
        4 * _ATTENTION_COPIES * max(ATTENTION_PAIRS, work.length**2) * work.heads if work.reads & ATTENTION else 0
    )
    several = len(list(parts(work.samples, work.length))) > 1  # the sum so far, and that of a part
    return weights + (2 if several else 1) * _state_memory(work, block) + running


def _state_memory(work: Workload, block: BlockWork) -> int:
    """Statistics that are alive together: of one stage, or of the whole block where inputs are not refreshed."""
    squares = [8 * width**2 for width in input_widths(block)]
    if not squares:
        return 0
    kinds = 2 if "float_inputs" in work.reads else 1
    return kinds * (max(squares) if _is_staged(block) else sum(squares))


def solve_memory(layer: LayerWork) -> int:
    """Bytes that solving a layer takes, its statistic among them."""
    copies = _HESSIAN_COPIES + (_TRANSFORM_COPIES if _makes_another_hessian(layer) else 0)
    return copies * 8 * layer.shape[1] ** 2 + 4 * _WEIGHT_COPIES * layer.weights


@functools.cache
def _makes_another_hessian(layer: LayerWork) -> bool:
    """Whether the recipe's transform changes or reorders inputs, tried on a small layer."""
    inputs = _trial_inputs(layer.recipe, layer.shape)
    problem = _random_problem((_trial_outputs(layer.recipe, layer.shape[0], inputs), inputs))
    fitted = layer.recipe.transform.fit(problem, torch.Generator().manual_seed(0))
    return fitted.order is not None or fitted.forward(problem).hessian is not problem.hessian


def _moment_memory(layer: LayerWork) -> int:
    return 8 * layer.shape[1] ** 2 if layer.recipe.statistic.reads else 0


def gradient_memory(work: Workload) -> int:
    """Bytes of the whole model and of the states of a part of the windows, where gradients are looked at."""
    model = 4 * (work.outside + sum(block.weights for block in work.blocks))
    return model + _gradient_states(work) if work.reads & GRADIENTS else 0


def _gradient_states(work: Workload) -> int:
    """Row Hessians and weights' sensitivity of all layers."""
    rows = sum(x.shape[0] ** 2 for x in work.layers if "output_gradients" in x.recipe.statistic.reads)
    squares = sum(math.prod(x.shape) for x in work.layers if "weight_gradients" in x.recipe.statistic.reads)
    return 8 * rows + 4 * squares
