"""Multiplying by, and decoding, trellis codes straight from their packed bytes.

    y_r = scale_r sum over columns c of  value(state_rc) x_c

A tile's stream is cut into words of S steps (see `trellis_lanes`); a vector holds 16 of them, so each instruction
meets 16 different places of the stream, and since a word lies in one column of the tile, each of its lanes one
activation. Sums stay in registers over a run of tiles: the S steps of a word are S outputs of the tile.

    1. spread   the bytes of a run of tiles become words and the words before them
    2. multiply value of each step's state (see `trellis_lanes`) times activations, added up over the run's tiles
    3. collect  lanes of the same output are added up

Activations and sums are float32, so nothing is rounded that decoding first would not round. The alternative is to take
the dot product of a state's four bytes with activations rounded to 8 bits, or to two times 8: measured side by side on
one core (2 bits, L = 16, mul1, 256 x 1, in cache; billion weights/s, multiply and spread alone)

    tokens                            1     2     4
    float32                          26    22    16
    int8, two planes (15 bits)       30    20    11
    int8, one plane (0.7 % error)    38    30    20

Two planes win 15 % for one token and lose from two on; one plane is what the best public kernel does (31), and what it
would take here to pass it: `accumulate` with the dot product's own sum in place of conversion and multiply-add.

A whole product of 4096 x 4096 in strips reaches 22, in tiles of 16 x 16 18, from a table of 2^16 values 2.9. Tiles
that are not whole vectors of words (58 x 4) are spread word by word and take several times as long.

Cost: for each 16 weights 7 instructions and one more a token for sums of bytes, 3 and a gather for tables.
`decode_reference` and `product_reference` are the oracles.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import literally  # type: ignore[attr-defined]
from torch import Tensor

from lowbit.kernels.processor import has_feature, in_threads
from lowbit.kernels.trellis_lanes import DOT_SUM, LANES, PORTABLE_SUM, TABLE, Plan, accumulate, emit, spread

# Tiles that are spread at a time, their words staying in the first-level cache; and those in one task, whose sums are
# added in the order of the tasks, so that the result does not depend on the number of threads.
_RUN, _TASK = 128, 1024
_DECODE_RUN = 32
_MOST_TOKENS = 4


@dataclass(frozen=True)
class ByteSum:
    """Values (sum of the four bytes of multiplier * state + increment mod 2^32, less 510) / unit."""

    multiplier: int
    increment: int
    unit: float


@dataclass(frozen=True, eq=False)
class PackedTrellis:
    """A layer [N, K] of trellis codes, as stored.

    codes: uint8 [row tiles, column tiles, bytes], the bit stream of each tile. scale: [N], or [1] for the layer.
    rows: N. tile: (rows, columns) of a tile. bits: b, entering at a step. closed: whether the bits before a tile's
    first step are its last ones, or else zeros. values: float32 [2^L, V]; byte_sum: where they are such sums.
    """

    codes: Tensor
    scale: Tensor
    rows: int
    tile: tuple[int, int]
    bits: int
    closed: bool
    values: Tensor
    byte_sum: ByteSum | None = None

    @property
    def length(self) -> int:
        """L, the bits of a state."""
        return len(self.values).bit_length() - 1

    @property
    def dimension(self) -> int:
        """V, the weights of a step."""
        return self.values.shape[1]


class Layout(NamedTuple):
    """How the words of a tile lie. rows, columns: of a tile; bits, steps, dimension: b, S and V of a word.

    per_column: words of a column, the last one's steps partly idle where S V does not divide the rows. words: of a
    tile; vectors: of 16, the last lanes idle. history: steps that a state remembers besides its own. aligned: whether
    the vectors are the stream in whole bytes, nothing idle.
    """

    rows: int
    columns: int
    bits: int
    steps: int
    dimension: int
    per_column: int
    words: int
    vectors: int
    history: int
    closed: bool
    aligned: bool


def decode_reference(packed: PackedTrellis, start: int, stop: int) -> Tensor:
    """The values of rows start..stop-1 (whole tiles, or up to the last row), float32 [stop - start, K]."""
    (height, width), b = packed.tile, packed.bits
    codes = packed.codes[start // height : -(-stop // height)]
    down, across, _ = codes.shape
    steps, history = height * width // packed.dimension, -(-packed.length // b) - 1
    at = torch.arange(steps, device=codes.device)[:, None] * b + torch.arange(b, device=codes.device)
    stored = codes[..., at // 8] >> (at % 8).to(torch.uint8) & 1
    stream = (stored.int() << torch.arange(b, device=codes.device)).sum(-1, dtype=torch.int32)
    states = torch.zeros_like(stream)
    for back in range(history + 1):
        earlier = stream.roll(back, -1)
        if not packed.closed:
            earlier[..., :back] = 0
        states |= earlier << b * back
    values = packed.values[(states & (1 << packed.length) - 1).long()].view(down, across, width, height)
    dense = values.permute(0, 3, 1, 2).reshape(down * height, across * width)[: stop - start]
    scale = packed.scale.float()
    return (scale if len(scale) == 1 else scale[start:stop])[:, None] * dense


def product_reference(packed: PackedTrellis, x: Tensor) -> Tensor:
    """x [T, K], float32, times the transposed values: [T, N]."""
    return x @ decode_reference(packed, 0, packed.rows).T


def has_kernel(packed: PackedTrellis) -> bool:
    """Whether `product` and `decode_rows` take it: no step may lie in two columns of a tile."""
    return packed.tile[0] % packed.dimension == 0


def decode_rows(packed: PackedTrellis, start: int, stop: int) -> Tensor:
    """The same as `decode_reference`, bit for bit, by numba."""
    height, width = packed.tile
    codes = packed.codes[start // height : -(-stop // height)]
    plan = _plan(packed, TABLE, 1)
    values = torch.empty(stop - start, codes.shape[1] * width)
    scale = packed.scale.float()
    scale = scale.expand(stop - start) if len(scale) == 1 else scale[start:stop]
    kernel = _decode_kernel(plan.text, plan.bits)
    arrays = codes.numpy(), packed.values.numpy(), scale.contiguous().numpy(), values.numpy()
    layout = _layout(packed, plan)
    in_threads(lambda first, last: kernel(first, last, layout, *arrays), len(codes), values.numel())
    return values


def product(packed: PackedTrellis, x: Tensor, kind: int | None = None) -> Tensor:
    """The same as `product_reference` but for the order of sums, by numba; x: float32 [T, K], on the CPU.

    kind: of `trellis_lanes`, how values are made; the fastest there is for None.
    """
    tokens = 1 if len(x) == 1 else _MOST_TOKENS
    plan = _plan(packed, _fastest(packed) if kind is None else kind, tokens)
    layout, (down, across, _) = _layout(packed, plan), packed.codes.shape
    groups, tasks = -(-len(x) // tokens), -(-across // _TASK)
    padded = x.new_zeros(groups * tokens, across, layout.columns)
    padded[: len(x)] = x.view(len(x), across, -1)
    factors = padded.view(groups, tokens, across, -1)[..., _columns(layout, plan)]
    factors = factors.view(groups, tokens, across, layout.vectors, -1)
    sums = torch.empty(tasks, groups, tokens, down, layout.rows)
    kernel = _product_kernel(plan.text, plan.bits)
    arrays = packed.codes.numpy(), factors.numpy(), packed.values.numpy(), sums.numpy()
    in_threads(lambda first, last: kernel(first, last, layout, *arrays), tasks * down, packed.rows * x.shape[1])
    y = sums.sum(0).view(groups * tokens, -1)[: len(x), : packed.rows]
    unit = packed.byte_sum.unit if packed.byte_sum is not None and kind != TABLE else 1.0
    return y * (packed.scale.float() / unit)


def _fastest(packed: PackedTrellis) -> int:
    if packed.byte_sum is None:
        return TABLE
    return DOT_SUM if has_dot_product() else PORTABLE_SUM


def has_dot_product() -> bool:
    """Whether this processor has the u8 x s8 dot product (AVX512-VNNI)."""
    return has_feature("avx512vnni")


def _plan(packed: PackedTrellis, kind: int, tokens: int) -> Plan:
    constants = (0, 0)
    if packed.byte_sum is not None and kind != TABLE:
        constants = (packed.byte_sum.multiplier, packed.byte_sum.increment)
    plan = Plan(packed.bits, packed.length, packed.dimension, kind, *constants, tokens, LANES)
    per_column = -(-packed.tile[0] // (plan.steps * plan.dimension))
    columns = LANES // per_column if LANES % per_column == 0 else 1 if per_column % LANES == 0 else LANES
    return replace(plan, columns=columns)


def _layout(packed: PackedTrellis, plan: Plan) -> Layout:
    (rows, columns), steps, b = packed.tile, plan.steps, packed.bits
    per_column = -(-rows // (steps * plan.dimension))
    words = columns * per_column
    whole = rows % (steps * plan.dimension) == 0 and words % LANES == 0 and steps * b % 8 == 0
    aligned = whole and packed.length - b <= steps * b
    vectors, history = -(-words // LANES), -(-packed.length // b) - 1
    return Layout(rows, columns, b, steps, plan.dimension, per_column, words, vectors, history, packed.closed, aligned)


def _columns(layout: Layout, plan: Plan) -> Tensor:
    """Which column of a tile each of its activations is, [vectors x columns of a vector]."""
    words = torch.arange(layout.vectors * plan.columns) * (LANES // plan.columns)
    return (words // layout.per_column).clamp_max(layout.columns - 1)


@cache
def _product_kernel(text: str, bits: int) -> Any:
    """kernel(first, last, layout, codes, x [groups, tokens, tiles, vectors, columns], table, sums)

    sums: [tasks, groups, tokens, row tiles, rows of a tile], of which pieces first..last-1 of tasks x row tiles.
    """

    @numba.njit(nogil=True, cache=True)
    def kernel(first, last, layout, codes, x, table, sums):  # type: ignore[no-untyped-def]
        for at in range(first, last):
            task, i = at // len(codes), at % len(codes)
            _multiply(text, bits, layout, codes[i], x, table, task * _TASK, sums[task, :, :, i])

    return kernel


@numba.njit(cache=True)
def _multiply(text, bits, layout, codes, x, table, start, sums):  # type: ignore[no-untyped-def]
    """sums [groups, tokens, R] of one row of tiles, codes [tiles, bytes], and _TASK of its tiles."""
    literally(text)
    stop = min(start + _TASK, len(codes))
    words = np.empty((_RUN, layout.vectors, LANES), np.uint32)
    before = np.empty_like(words)
    held = np.zeros((len(x), layout.vectors, layout.steps, layout.dimension, x.shape[1], LANES), np.float32)
    for first in range(start, stop, _RUN):
        run = min(_RUN, stop - first)
        _spread(bits, layout, codes[first : first + run], words[:run], before[:run])
        for v in range(layout.vectors):
            for g in range(len(x)):
                part = x[g, :, first : first + run, v]
                accumulate(text, words[:run, v], before[:run, v], part, table, held[g, v])  # type: ignore[call-arg]
    _collect(layout, held, sums)


@numba.njit(cache=True)
def _collect(layout, held, sums):  # type: ignore[no-untyped-def]
    """Add up the lanes of the same output."""
    sums[:] = 0
    for g in range(sums.shape[0]):
        for word in range(layout.words):
            v, lane, first = word // LANES, word % LANES, word % layout.per_column * layout.steps * layout.dimension
            for i in range(min(layout.steps * layout.dimension, layout.rows - first)):
                for t in range(sums.shape[1]):
                    sums[g, t, first + i] += held[g, v, i // layout.dimension, i % layout.dimension, t, lane]


@cache
def _decode_kernel(text: str, bits: int) -> Any:
    """kernel(first, last, layout, codes, table, scale [rows], values [rows, K]): row tiles first..last-1."""

    @numba.njit(nogil=True, cache=True)
    def kernel(first, last, layout, codes, table, scale, values):  # type: ignore[no-untyped-def]
        for i in range(first, last):
            rows = slice(i * layout.rows, (i + 1) * layout.rows)
            for j in range(0, codes.shape[1], _DECODE_RUN):
                some, columns = slice(j, j + _DECODE_RUN), slice(j * layout.columns, (j + _DECODE_RUN) * layout.columns)
                _decode(text, bits, layout, codes[i, some], table, scale[rows], values[rows, columns])

    return kernel


@numba.njit(cache=True)
def _decode(text, bits, layout, codes, table, scale, values):  # type: ignore[no-untyped-def]
    """values [rows, columns] of a run of tiles, codes [tiles, bytes]."""
    literally(text)
    tiles, span = len(codes), layout.steps * layout.dimension
    size = span * LANES
    words = np.empty((tiles, layout.vectors, LANES), np.uint32)
    before = np.empty_like(words)
    _spread(bits, layout, codes, words, before)
    # A vector more than is needed, so that the same place of all tiles does not compete for a few sets of the cache.
    looked_up = np.empty((tiles, layout.vectors * size + LANES), np.float32)
    for j in range(tiles):
        for v in range(layout.vectors):
            emit(text, words[j, v], before[j, v], table, looked_up[j, v * size :])  # type: ignore[call-arg]
    U = np.uint64
    # In the order of `looked_up`, a line of which then serves 16 rows; unsigned, or numba tests each index.
    for at in range(U(layout.vectors * size)):
        step, lane = at // U(LANES) % U(span), at // U(size) * U(LANES) + at % U(LANES)
        row, c = lane % U(layout.per_column) * U(span) + step, lane // U(layout.per_column)
        if row < U(len(values)) and c < U(layout.columns):
            s = scale[row]
            for j in range(U(tiles)):
                values[row, j * U(layout.columns) + c] = s * looked_up[j, at]


@numba.njit(cache=True)
def _spread(bits, layout, codes, words, before):  # type: ignore[no-untyped-def]
    """words [tiles, vectors, 16] of codes [tiles, bytes], and the words before them, moved down to the lowest bits."""
    literally(bits)
    unused = np.uint32(32 - layout.bits * layout.steps)
    if layout.aligned:
        word, earlier = words.reshape(-1), before.reshape(-1)
        spread(bits, codes.reshape(-1), word)  # type: ignore[call-arg]
        for i in range(1, len(word)):
            earlier[i] = word[i - 1] >> unused
        for j in range(len(codes)):
            before[j, 0, 0] = words[j, -1, -1] >> unused if layout.closed else 0
        return
    words[:], before[:] = 0, 0
    for j in range(len(codes)):
        for w in range(layout.words):
            part = w % layout.per_column * layout.steps
            step = w // layout.per_column * (layout.rows // layout.dimension) + part
            words[j, w // LANES, w % LANES] = _word(layout, codes[j], step)
            before[j, w // LANES, w % LANES] = _history(layout, codes[j], step)


@numba.njit(cache=True)
def _word(layout, stream, step):  # type: ignore[no-untyped-def]
    """The codes of a word whose first step is `step`, the first highest; zeros after the stream's end."""
    at, bits, word = step * layout.bits, np.uint64(0), np.uint64(0)
    for byte in range(at // 8, min(at // 8 + 5, len(stream))):
        bits |= np.uint64(stream[byte]) << np.uint64(8 * (byte - at // 8))
    bits >>= np.uint64(at % 8)
    for _ in range(layout.steps):
        word = word << np.uint64(layout.bits) | bits & np.uint64((1 << layout.bits) - 1)
        bits >>= np.uint64(layout.bits)
    return np.uint32(word << np.uint64(32 - layout.bits * layout.steps))


@numba.njit(cache=True)
def _history(layout, stream, step):  # type: ignore[no-untyped-def]
    """The codes before a step that its state remembers, the last lowest."""
    steps, word = layout.rows * layout.columns // layout.dimension, np.uint64(0)
    for back in range(layout.history, 0, -1):
        code = np.uint64(0)
        if layout.closed or back <= step:
            at = (step - back) % steps * layout.bits
            high = stream[at // 8 + 1] if at // 8 + 1 < len(stream) else np.uint8(0)
            code = (np.uint64(stream[at // 8]) | np.uint64(high) << np.uint64(8)) >> np.uint64(at % 8)
        word = word << np.uint64(layout.bits) | code & np.uint64((1 << layout.bits) - 1)
    return np.uint32(word & np.uint64(0xFFFFFFFF))
