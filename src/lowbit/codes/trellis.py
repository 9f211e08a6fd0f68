"""The bitshift trellis: weights as windows of a bit stream.

The weights of a tile are one sequence. Each step of it shifts b = k V new bits into a state of L bits and emits the
V numbers that the state stands for, times the layer's scale:

    state_t = bits of steps t, t - 1, ... (L of them, the newest lowest),    w_t = scale * values[state_t]

Every weight thus depends on L bits but costs k: a code of dimension rows x columns, whose best path the Viterbi
algorithm finds. At 2 bits and L = 16 the error of Gaussian weights is 0.068 of their variance where a scalar grid
has 0.118 and the limit is 0.0625 (docs/LOG.md). Any state can be read without its neighbours.

Order: down the outputs of a tile's first column, then of its next one, so a tile can be encoded column by column.
A tile of one column (256 x 1) leaves all of LDLQ's feedback between columns to the rounder. EXL3's order is another,
that in which a tensor core holds a matrix of 16 x 16 (m16n8k16): each of 32 lanes has 2 x 2 inputs of 2 outputs. Where
nothing is fed back inside a tile, one order is as good as another (docs/LOG.md).

Codes: uint8 [row tiles, column tiles, T / V] of b bits each, T = rows x columns, in the order of the steps. Bits per
weight: k + 16 / K with a float16 scale a row, k + 16 / (N K) with one for the layer; rows are filled up to whole
tiles.

Papers: QTIP (arXiv 2406.11235). Differs from its code: tiles of any shape in column order, a scale for each row, any
L; its scale_override is `loading`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lowbit.codes.trellis_values import value_table
from lowbit.core.errors import BadRequest, require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.parts import encode_tiles
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side
from lowbit.kernels import viterbi
from lowbit.kernels.viterbi import Trellis

TileOrder = Literal["columns", "fragment"]
Scaling = Literal["row", "tensor", "unit"]

_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_MOST_STATE_BITS = 20
_FRAGMENT = (16, 16)


@dataclass(frozen=True)
class BitshiftTrellis:
    """A trellis whose paths start at the state of all zeros, so the first L / k weights have little choice.

    L: bits of a state, at most 20; 12, 14, 16 and 18 trade time for accuracy, fourfold for each step.
    k: bits per weight; k V must be whole, 1 to 8 and at most L: V = 2 gives halves of a bit.
    V: weights that a step emits. tile: (rows, columns). values: a name in `trellis_values.VALUES`.
    scales: "row", "tensor", or "unit" for none: what comes before has brought the weights to the size of the values.
    scale_dtype: "float16" or "float32", as stored.
    loading: rms of the scaled weights over that of the values; QTIP takes 0.9 to leave room for feedback.
    order: of a tile's weights along the path: "columns", or EXL3's "fragment" in tiles of 16 x 16 without row scales.
    """

    L: int = 16
    k: float = 2
    V: int = 1
    tile: tuple[int, int] = (256, 1)
    values: str = "mul1"
    scales: Scaling = "row"
    scale_dtype: Literal["float16", "float32"] = "float16"
    loading: float = 1.0
    order: TileOrder = "columns"

    refit_every = 0

    def __post_init__(self) -> None:
        name, weights = "BitshiftTrellis", math.prod(self.tile)
        require(self.V >= 1, f"{name}(V={self.V}): must be at least 1. Use 1, or 2 for halves of a bit.")
        require(1 <= self.L <= _MOST_STATE_BITS, f"{name}(L={self.L}): must be 1 to {_MOST_STATE_BITS}. Use 16.")
        bits = self.k * self.V
        require(
            bits == int(bits) and 1 <= bits <= 8,
            f"{name}(k={self.k}, V={self.V}): k V bits enter at a step; they must be a whole number from 1 to 8.",
        )
        require(
            bits <= self.L,
            f"{name}(L={self.L}, k={self.k}, V={self.V}): more bits enter at a step than a state holds. Raise L.",
        )
        require(
            len(self.tile) == 2 and min(self.tile) >= 1 and weights % self.V == 0,
            f"{name}(tile={self.tile}, V={self.V}): V must divide the weights of a tile (rows, columns).",
        )
        require(
            weights * self.k >= self.L,
            f"{name}(tile={self.tile}, k={self.k}) holds {weights * self.k:g} bits, fewer than the L={self.L} of a "
            "state. Use a larger tile or a smaller L.",
        )
        require(
            self.scales in ("row", "tensor", "unit"),
            f'{name}(scales={self.scales!r}): must be "row", "tensor" or "unit".',
        )
        require(self.scale_dtype in _DTYPES, f"{name}(scale_dtype={self.scale_dtype!r}): must be {list(_DTYPES)}.")
        require(self.loading > 0, f"{name}(loading={self.loading}): must be above 0. Use 1.0.")
        require(
            self.order in ("columns", "fragment"), f'{name}(order={self.order!r}): must be "columns" or "fragment".'
        )
        require(
            self.order == "columns" or self._has_fragments,
            f'{name}(order="fragment", tile={self.tile}, scales={self.scales!r}): a fragment is a tile of (16, 16) '
            'whose rows have no scales of their own. Use order="columns".',
        )
        value_table(self.values, self.L, self.V, self.step_bits)

    @property
    def trellis(self) -> Trellis:
        return _trellis(self.values, self.L, self.V, self.step_bits)

    @property
    def _has_fragments(self) -> bool:
        return self.tile == _FRAGMENT and self.scales != "row"

    def with_tile(self, tile: tuple[int, int], scales: Scaling) -> "BitshiftTrellis":
        """The same code with other tiles, in the order of columns where they cannot be fragments."""
        plain = replace(self, tile=tile, scales=scales, order="columns")
        return replace(plain, order=self.order) if plain._has_fragments else plain

    @property
    def step_bits(self) -> int:
        """b, the bits that enter at a step."""
        return int(self.k * self.V)

    def check(self, shape: tuple[int, int]) -> None:
        (n, k), (rows, columns) = shape, self.tile
        weights = rows * columns
        if k % columns:
            fits = [c for c in range(1, columns) if k % c == 0 and weights % c == 0]
            raise BadRequest(
                f"Tiles of {rows} x {columns} do not divide the {k} inputs of a [{n}, {k}] layer. "
                f"The nearest that fit are {weights // fits[-1]} x {fits[-1]}."
            )
        if self.scales != "row" and n % rows:
            fits = [r for r in range(1, rows) if n % r == 0 and weights % r == 0 and k % (weights // r) == 0]
            tile = f"tiles of {fits[-1]} x {weights // fits[-1]}, or " if fits else ""
            raise BadRequest(
                f"Tiles of {rows} x {columns} do not divide the {n} outputs of a [{n}, {k}] layer, and outputs are "
                f'filled up only where each has its scale. Use {tile}scales="row".'
            )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        (n, k), (rows, columns) = shape, self.tile
        codes = Bits((-(-n // rows), k // columns, rows * columns // self.V), self.step_bits)
        scale = {"scale": Array((self._scales(n), 1), _DTYPES[self.scale_dtype])}
        return {"codes": codes} | (scale if self.scales != "unit" else {})

    def fit(self, problem: LayerProblem) -> Side:
        if self.scales == "unit":
            return {}
        weight, dtype = problem.weight, _DTYPES[self.scale_dtype]
        mean_square = weight.reshape(self._scales(len(weight)), -1).double().square().mean(1, keepdim=True)
        rms = float(self.trellis.values.double().square().mean().sqrt())
        scale = (mean_square.sqrt() / (rms * self.loading)).to(dtype)
        require(
            bool(torch.isfinite(scale).all()),
            f'BitshiftTrellis(scale_dtype={self.scale_dtype!r}): weights are too large. Use "float32".',
        )
        return {"scale": scale.clamp_min(2.0**-24)}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return side

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        return _encode(self, target, side, self.path)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return encode_tiles(self, weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        before = codes.new_zeros((*codes.shape[:2], _history(self)))
        return _values(self, _windows(self, torch.cat([before, codes], -1)), side)

    def path(self, sequences: Tensor) -> Tensor:
        """The states [B, T / V] nearest to sequences [B, T / V, V] of scaled weights."""
        start = torch.zeros(len(sequences), dtype=torch.int64)
        return viterbi.search(sequences, self.trellis, start, viterbi.anywhere(sequences))

    def _scales(self, n: int) -> int:
        return n if self.scales == "row" else 1


@dataclass(frozen=True)
class TailBiting:
    """A trellis whose paths close: the bits before the first step are those of the last ones.

    No weight lacks choice and nothing but the k bits of each is stored. The path is the best one through a seam that
    is found on the `window` steps on each side of it; None for half the sequence, QTIP's way, which takes two
    searches of the whole. 48 takes two thirds of the time and costs 1 % in squared error (2 bits, L = 16).

    joint: columns of a tile that are encoded at once; None for all, QTIP's way. With fewer, the path through a tile is
    settled that many columns at a time, and the rest of it is searched again for targets that know their error: all
    of LDLQ's feedback survives in tiles of any shape, for (c - 1) / 2 more searches of a tile of c such steps.
    """

    trellis: BitshiftTrellis = BitshiftTrellis()
    window: int | None = None
    joint: int | None = None

    refit_every = 0

    def __post_init__(self) -> None:
        (rows, columns), V = self.trellis.tile, self.trellis.V
        require(
            self.window is None or self.window >= 1,
            f"TailBiting(window={self.window}): must be at least 1 step. Use 48, or None for half the tile.",
        )
        require(
            self.joint is None or (1 <= self.joint <= columns and rows * self.joint % V == 0),
            f"TailBiting(joint={self.joint}): must be 1 to the tile's {columns} columns, and V={V} must divide the "
            f"weights of so many columns of {rows}. Use None.",
        )
        require(
            self.trellis.order == "columns" or self.joint in (None, columns),
            f'TailBiting(joint={self.joint}): a fragment is encoded at once. Use None, or order="columns".',
        )

    def with_tile(self, tile: tuple[int, int], scales: Scaling) -> "TailBiting":
        """The same code with other tiles."""
        return replace(self, trellis=self.trellis.with_tile(tile, scales))

    @property
    def joint_columns(self) -> int:
        return self.joint or self.tile[1]

    @property
    def tile(self) -> tuple[int, int]:
        return self.trellis.tile

    def check(self, shape: tuple[int, int]) -> None:
        self.trellis.check(shape)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return self.trellis.fields(shape)

    def fit(self, problem: LayerProblem) -> Side:
        return self.trellis.fit(problem)

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return side

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        return _encode(self.trellis, target, side, self.path)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        code, (rows, width) = self.trellis, self.tile
        wanted, values, codes = target.clone(), torch.empty_like(target), []
        for start in range(0, target.shape[1], width):
            stop = start + width
            states = self.path(_sequences(code, wanted[:, start:stop], side, width))
            seam = _edge(code, states[:, -1])
            for at in range(start, stop, self.joint_columns):
                end = min(at + self.joint_columns, stop)
                settled, after = slice(at, end), slice(end, None)
                first, last = (at - start) * rows // code.V, (end - start) * rows // code.V
                if at > start:
                    rest = _sequences(code, wanted[:, at:stop], side, stop - at)
                    states[:, first:] = viterbi.search(rest, code.trellis, _edge(code, states[:, first - 1]), seam)
                values[:, settled] = _values(code, states[:, None, first:last], side)[: len(target)].to(values.dtype)
                wanted[:, after] += (weight[:, settled] - values[:, settled]) @ feedback[settled, after]
            codes.append(_newest(code, states)[:, None])
        return torch.cat(codes, 1), values

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        before = codes[..., codes.shape[-1] - _history(self.trellis) :]
        return _values(self.trellis, _windows(self.trellis, torch.cat([before, codes], -1)), side)

    def path(self, sequences: Tensor) -> Tensor:
        """The states [B, T / V] of closed paths near to sequences [B, T / V, V] of scaled weights."""
        return viterbi.tail_biting(sequences, self.trellis.trellis, self.window)


def _encode(
    code: BitshiftTrellis, target: Tensor, side: Side, path: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Codes and values [N, w] of target [N, w] along the states that `path` finds."""
    rows, columns = code.tile
    down, across = -(-len(target) // rows), target.shape[1] // columns
    states = path(_sequences(code, target, side, columns)).view(down, across, -1)
    return _newest(code, states), _values(code, states, side)[: len(target)].to(target.dtype)


def _sequences(code: BitshiftTrellis, target: Tensor, side: Side, columns: int) -> Tensor:
    """What tiles of so many columns should come near to: [tiles, T / V, V], in units of the values."""
    (n, width), rows = target.shape, code.tile[0]
    scaled = target.new_zeros((-(-n // rows) * rows, width), dtype=torch.float32)
    scaled[:n] = target / side["scale"].to(target.dtype) if code.scales != "unit" else target
    tiles = scaled.view(-1, rows, width // columns, columns).permute(0, 2, 3, 1)
    weights = tiles.reshape(tiles.shape[0] * tiles.shape[1], -1)
    return (weights if code.order == "columns" else weights[:, fragment()]).view(len(weights), -1, code.V)


def _values(code: BitshiftTrellis, states: Tensor, side: Side) -> Tensor:
    """Values [N, w], float32, of states [row tiles, column tiles, steps], each tile as wide as its steps go."""
    (down, across, steps), rows = states.shape, code.tile[0]
    columns = steps * code.V // rows
    weights = code.trellis.values[states.long()].view(down, across, -1)
    if code.order == "fragment":
        weights = weights[..., fragment().argsort()]
    values = weights.view(down, across, columns, rows).permute(0, 3, 1, 2).reshape(down * rows, across * columns)
    if code.scales == "unit":
        return values
    scale = side["scale"].float()
    return scale * (values if len(scale) == 1 else values[: len(scale)])


@functools.cache
def fragment() -> Tensor:
    """[256] int64: where the weights of a path lie in a tile of 16 x 16, as 16 x input + output.

    Lane l of a tensor core holds inputs 2 (l mod 4) + {0, 1, 8, 9} of outputs l div 4 + {0, 8}, in this order.
    """
    at = torch.arange(math.prod(_FRAGMENT))
    lane, output, far, near = at // 8, at // 4 % 2, at // 2 % 2, at % 2
    return 16 * (2 * (lane % 4) + 8 * far + near) + lane // 4 + 8 * output


def _newest(code: BitshiftTrellis, states: Tensor) -> Tensor:
    """The bits that entered last, which are the codes."""
    return (states & ((1 << code.step_bits) - 1)).to(torch.uint8)


def _edge(code: BitshiftTrellis, state: Tensor) -> Tensor:
    """The bits of a state that the next one shares with it, [B] int64."""
    return state.long() & (code.trellis.edges - 1)


def _history(code: BitshiftTrellis) -> int:
    """The steps before a step that its state remembers."""
    return -(-code.L // code.step_bits) - 1


def _windows(code: BitshiftTrellis, stream: Tensor) -> Tensor:
    """States [..., T / V] from the bits of all steps and of the remembered ones before: [..., history + T / V]."""
    history = _history(code)
    steps, states = stream.shape[-1] - history, torch.zeros((), dtype=torch.int32)
    for back in range(history + 1):
        start = history - back
        states = states | (stream[..., start : start + steps].int() << (code.step_bits * back))
    return states & ((1 << code.L) - 1)


@functools.cache
def _trellis(values: str, length: int, dimension: int, bits: int) -> Trellis:
    """The search's tables, made once for all codes that use them."""
    return Trellis(value_table(values, length, dimension, bits), bits)
