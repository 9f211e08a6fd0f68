"""Multiplying by, and decoding, trellis codes straight from their packed bytes.

    y_r = scale_r sum over columns c of  value(state_rc) x_c

A tile's stream is cut into words of S steps (see `trellis_lanes`); a vector holds 16 of them, so each instruction
meets 16 different places of the stream, and since a word lies in one column of the tile, each of its lanes one
activation. Sums stay in registers over a run of tiles: the S steps of a word are S outputs of the tile.

    1. spread   the bytes of a run of tiles become words and the words before them
    2. multiply value of each step's state (see `trellis_lanes`) times activations, added up over the run's tiles
    3. collect  lanes of the same output are added up

A tile may hold the path in another order than down its columns, as EXL3's fragments do: then each step of a vector has
activations of its own, of which a few repeat over the lanes, and a load that repeats them costs nothing.

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
that are not whole vectors of words (58 x 4) are spread word by word and take several times as long. At 5 and 7 bits
words are no whole bytes, and spreading them takes most of the time (1.3, where 6 bits reach 7.5).

Cost: for each 16 weights 7 instructions and one more a token for sums of bytes, 10 for sums of halves, 3 and a gather
for tables.
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

from lowbit.kernels.bit_streams import read_integers
from lowbit.kernels.processor import has_feature, in_threads
from lowbit.kernels.state_values import FROM_TABLE, StateValues
from lowbit.kernels.trellis_lanes import DOT_SUM, HALF_SUM, LANES, PORTABLE_SUM, TABLE, Plan, accumulate, emit, spread

# Tiles that are spread at a time, their words staying in the first-level cache; and those in one task, whose sums are
# added in the order of the tasks, so that the result does not depend on the number of threads.
_RUN, _TASK = 128, 1024
_DECODE_RUN = 32
_MOST_TOKENS = 4


@dataclass(frozen=True, eq=False)
class PackedTrellis:
    """A layer [N, K] of trellis codes, as stored.

    codes: uint8 [row tiles, column tiles, bytes], the bit stream of each tile. scale: [N], or [1] for the layer.
    rows: N. tile: (rows, columns) of a tile. bits: b, entering at a step. closed: whether the bits before a tile's
    first step are its last ones, or else zeros. values: float32 [2^L, V]; computed: the same, where they can be.
    order: where the weights of the path lie in a tile, as rows x column + row; None for down one column after another.
    """

    codes: Tensor
    scale: Tensor
    rows: int
    tile: tuple[int, int]
    bits: int
    closed: bool
    values: Tensor
    computed: StateValues = FROM_TABLE
    order: tuple[int, ...] | None = None

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

    per_stretch: words of a stretch, which is a column, or all of a tile in another order; the last one's steps are
    partly idle where S V does not divide its weights. stretch_steps: of a stretch. words: of a tile; vectors: of 16,
    the last lanes idle. history: steps that a state remembers besides its own. whole: whether nothing is idle and no
    state goes back beyond the word before.
    """

    rows: int
    columns: int
    bits: int
    steps: int
    dimension: int
    per_stretch: int
    stretch_steps: int
    words: int
    vectors: int
    history: int
    closed: bool
    whole: bool


class Places(NamedTuple):
    """Where the weights of words lie in a tile: int64 [vectors, S V, 16], row -1 where idle."""

    rows: np.ndarray
    columns: np.ndarray


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
    values = packed.values[(states & (1 << packed.length) - 1).long()].flatten(2)
    if packed.order is not None:
        values = values[..., torch.tensor(packed.order, device=codes.device).argsort()]
    tiles = values.view(down, across, width, height).permute(0, 3, 1, 2)
    dense = tiles.reshape(down * height, across * width)[: stop - start]
    scale = packed.scale.float()
    return (scale if len(scale) == 1 else scale[start:stop])[:, None] * dense


def product_reference(packed: PackedTrellis, x: Tensor) -> Tensor:
    """x [T, K], float32, times the transposed values: [T, N]."""
    return x @ decode_reference(packed, 0, packed.rows).T


def has_kernel(packed: PackedTrellis) -> bool:
    """Whether `product` and `decode_rows` take it: no step may lie in two columns of a tile."""
    return packed.order is not None or packed.tile[0] % packed.dimension == 0


def computes(packed: PackedTrellis) -> bool:
    """Whether `product` computes the values, which pays for more tokens than a table does."""
    return packed.computed.kind in ("byte sum", "half sum")


def decode_rows(packed: PackedTrellis, start: int, stop: int) -> Tensor:
    """The same as `decode_reference`, bit for bit, by numba."""
    height, width = packed.tile
    codes = packed.codes[start // height : -(-stop // height)]
    plan, layout, places = _made(packed, TABLE, 1)
    values = torch.empty(stop - start, codes.shape[1] * width)
    scale = packed.scale.float()
    scale = scale.expand(stop - start) if len(scale) == 1 else scale[start:stop]
    kernel = _decode_kernel(plan.text, plan.bits)
    arrays = codes.numpy(), packed.values.numpy(), scale.contiguous().numpy(), values.numpy()
    in_threads(lambda first, last: kernel(first, last, layout, places, *arrays), len(codes), values.numel())
    return values


def product(packed: PackedTrellis, x: Tensor, kind: int | None = None) -> Tensor:
    """The same as `product_reference` but for the order of sums, by numba; x: float32 [T, K], on the CPU.

    kind: of `trellis_lanes`, how values are made; the fastest there is for None.
    """
    tokens, kind = 1 if len(x) == 1 else _MOST_TOKENS, _fastest(packed) if kind is None else kind
    plan, layout, places = _made(packed, kind, tokens)
    down, across, _ = packed.codes.shape
    groups, tasks = -(-len(x) // tokens), -(-across // _TASK)
    padded = x.new_zeros(groups * tokens, across, layout.columns)
    padded[: len(x)] = x.view(len(x), across, -1)
    factors = padded.view(groups, tokens, across, -1)[..., torch.from_numpy(_met(plan, places))]
    sums = torch.empty(tasks, groups, tokens, down, layout.rows)
    kernel = _product_kernel(plan.text, plan.bits)
    arrays = places, packed.codes.numpy(), factors.numpy(), packed.values.numpy(), sums.numpy()
    in_threads(lambda first, last: kernel(first, last, layout, *arrays), tasks * down, packed.rows * x.shape[1])
    y = sums.sum(0).view(groups * tokens, -1)[: len(x), : packed.rows]
    if kind != TABLE:
        y = y / packed.computed.unit + packed.computed.offset * x.sum(1, keepdim=True)
    return y * packed.scale.float()


def _fastest(packed: PackedTrellis) -> int:
    match packed.computed.kind:
        case "byte sum":
            return DOT_SUM if has_dot_product() else PORTABLE_SUM
        case "half sum":
            return HALF_SUM
    return TABLE


def has_dot_product() -> bool:
    """Whether this processor has the u8 x s8 dot product (AVX512-VNNI)."""
    return has_feature("avx512vnni")


def _made(packed: PackedTrellis, kind: int, tokens: int) -> tuple[Plan, Layout, Places]:
    constants = (0, 0) if kind == TABLE else (packed.computed.multiplier, packed.computed.increment)
    plan = Plan(packed.bits, packed.length, packed.dimension, kind, *constants, tokens, LANES)
    layout = _layout(plan, packed.tile, packed.closed, packed.order is not None)
    places = _places(layout, packed.order)
    if packed.order is not None:
        return replace(plan, period=_period(places.columns)), layout, places
    per = layout.per_stretch
    columns = LANES // per if LANES % per == 0 else 1 if per % LANES == 0 else LANES
    return replace(plan, columns=columns), layout, places


@cache
def _layout(plan: Plan, tile: tuple[int, int], closed: bool, is_reordered: bool) -> Layout:
    (rows, columns), span = tile, plan.steps * plan.dimension
    stretch, stretches = (rows * columns, 1) if is_reordered else tile
    per_stretch = -(-stretch // span)
    words, history = stretches * per_stretch, -(-plan.length // plan.bits) - 1
    whole = stretch % span == 0 and words % LANES == 0 and plan.length - plan.bits <= plan.steps * plan.bits
    return Layout(
        *(rows, columns, plan.bits, plan.steps, plan.dimension),
        *(per_stretch, stretch // plan.dimension, words, -(-words // LANES)),
        *(history, closed, whole),
    )


@cache
def _places(layout: Layout, order: tuple[int, ...] | None) -> Places:
    span, stretch = layout.steps * layout.dimension, layout.stretch_steps * layout.dimension
    words = np.arange(layout.vectors * LANES).reshape(-1, 1, LANES)
    inside = words % layout.per_stretch * span + np.arange(span)[:, None]
    at = words // layout.per_stretch * stretch + inside
    idle = (inside >= stretch) | (words >= layout.words)
    at = np.minimum(at, layout.rows * layout.columns - 1)
    at = at if order is None else np.array(order)[at]
    return Places(np.where(idle, -1, at % layout.rows), at // layout.rows)


def _period(columns: np.ndarray) -> int:
    """After how many lanes the columns [vectors, S V, 16] repeat, in all steps."""
    periods = (1 << i for i in range(LANES.bit_length()))
    return next(p for p in periods if (columns == np.tile(columns[..., :p], LANES // p)).all())


def _met(plan: Plan, places: Places) -> np.ndarray:
    """The columns whose activations a vector meets: [vectors, 1, columns], or [1 or vectors, S V, period]."""
    if not plan.period:
        return places.columns[:, :1, :: LANES // plan.columns]
    met = places.columns[..., : plan.period]
    return met[:1] if (met == met[:1]).all() else met


@cache
def _product_kernel(text: str, bits: int) -> Any:
    """kernel(first, last, layout, places, codes, x [groups, tokens, tiles, vectors, ..], table, sums), x as `_met` says

    sums: [tasks, groups, tokens, row tiles, rows of a tile], of which pieces first..last-1 of tasks x row tiles.
    """

    @numba.njit(nogil=True, cache=True)
    def kernel(first, last, layout, places, codes, x, table, sums):  # type: ignore[no-untyped-def]
        for at in range(first, last):
            task, i = at // len(codes), at % len(codes)
            held = _multiply(text, bits, layout, codes[i], x, table, task * _TASK)
            _collect(places, held, sums[task, :, :, i])

    return kernel


@numba.njit(cache=True)
def _multiply(text, bits, layout, codes, x, table, start):  # type: ignore[no-untyped-def]
    """Sums [groups, vectors, S, V, tokens, 16] of one row of tiles, codes [tiles, bytes], and _TASK of its tiles."""
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
                part = x[g, :, first : first + run, v % x.shape[3]]
                accumulate(text, words[:run, v], before[:run, v], part, table, held[g, v])  # type: ignore[call-arg]
    return held


@numba.njit(cache=True)
def _collect(places, held, sums):  # type: ignore[no-untyped-def]
    """sums [groups, tokens, R]: the lanes of the same output added up."""
    sums[:] = 0
    vectors, span, lanes = places.rows.shape
    for g in range(sums.shape[0]):
        for v in range(vectors):
            parts = held[g, v].reshape(span, -1, lanes)
            for lane in range(lanes):
                for i in range(span):
                    if places.rows[v, i, lane] >= 0:
                        for t in range(sums.shape[1]):
                            sums[g, t, places.rows[v, i, lane]] += parts[i, t, lane]


@cache
def _decode_kernel(text: str, bits: int) -> Any:
    """kernel(first, last, layout, places, codes, table, scale [rows], values [rows, K]): row tiles first..last-1."""

    @numba.njit(nogil=True, cache=True)
    def kernel(first, last, layout, places, codes, table, scale, values):  # type: ignore[no-untyped-def]
        for i in range(first, last):
            rows = slice(i * layout.rows, (i + 1) * layout.rows)
            for j in range(0, codes.shape[1], _DECODE_RUN):
                some, columns = slice(j, j + _DECODE_RUN), slice(j * layout.columns, (j + _DECODE_RUN) * layout.columns)
                _decode(text, bits, layout, places, codes[i, some], table, scale[rows], values[rows, columns])

    return kernel


@numba.njit(cache=True)
def _decode(text, bits, layout, places, codes, table, scale, values):  # type: ignore[no-untyped-def]
    """values [rows, columns] of a run of tiles, codes [tiles, bytes]."""
    literally(text)
    tiles, size = len(codes), layout.steps * layout.dimension * LANES
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
    rows, columns = places.rows.ravel(), places.columns.ravel()
    for at in range(U(len(rows))):
        # An idle one's row is beyond all others.
        row, c = U(rows[at]), U(columns[at])
        if row < U(len(values)):
            s = scale[row]
            for j in range(U(tiles)):
                values[row, j * U(layout.columns) + c] = s * looked_up[j, at]


@numba.njit(cache=True)
def _spread(bits, layout, codes, words, before):  # type: ignore[no-untyped-def]
    """words [tiles, vectors, 16] of codes [tiles, bytes], and the words before them, moved down to the lowest bits."""
    literally(bits)
    unused = np.uint32(32 - layout.bits * layout.steps)
    if layout.whole:
        word, earlier = words.reshape(-1), before.reshape(-1)
        if layout.bits * layout.steps % 8 == 0:
            spread(bits, codes.reshape(-1), word)  # type: ignore[call-arg]
        else:
            _spread_unaligned(layout, codes, words)
        for i in range(1, len(word)):
            earlier[i] = word[i - 1] >> unused
        for j in range(len(codes)):
            before[j, 0, 0] = words[j, -1, -1] >> unused if layout.closed else 0
        return
    words[:], before[:] = 0, 0
    for j in range(len(codes)):
        for w in range(layout.words):
            step = w // layout.per_stretch * layout.stretch_steps + w % layout.per_stretch * layout.steps
            words[j, w // LANES, w % LANES] = _word(layout, codes[j], step)
            before[j, w // LANES, w % LANES] = _history(layout, codes[j], step)


@numba.njit(cache=True)
def _spread_unaligned(layout, codes, words):  # type: ignore[no-untyped-def]
    """Words that are no whole bytes."""
    U, b = np.uint32, np.uint32(layout.bits)
    mask, unused = U((1 << layout.bits) - 1), U(32 - layout.bits * layout.steps)
    for j in range(len(codes)):
        word = words[j].reshape(-1)
        read_integers(codes.reshape(-1), np.uint64(j * codes.shape[1]), np.uint64(layout.bits * layout.steps), word)
        for i in range(len(word)):
            left, turned = word[i], U(0)
            for _ in range(layout.steps):
                turned, left = U(turned << b | left & mask), U(left >> b)
            word[i] = U(turned << unused)


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
