"""The bitshift trellis: weights as windows of a bit stream.

The weights of a tile are one sequence. Each step of it shifts b = k V new bits into a state of L bits and emits the
V numbers that the state stands for, times the layer's scale:

    state_t = bits of steps t, t - 1, ... (L of them, the newest lowest),    w_t = scale * values[state_t]

Every weight thus depends on L bits but costs k: a code of dimension rows x columns, whose best path the Viterbi
algorithm finds. At 2 bits and L = 16 the error of Gaussian weights is 0.068 of their variance where a scalar grid
has 0.118 and the limit is 0.0625 (docs/LOG.md). Any state can be read without its neighbours.

Order: down the outputs of a tile's first column, then of its next one, so a tile can be encoded column by column.
A tile of one column (256 x 1) leaves all of LDLQ's feedback between columns to the rounder.

Codes: uint8 [row tiles, column tiles, T / V] of b bits each, T = rows x columns, in the order of the steps. Bits per
weight: k + 16 / K with a float16 scale a row, k + 16 / (N K) with one for the layer; rows are filled up to whole
tiles.

Papers: QTIP (arXiv 2406.11235). Differs from its code: tiles of any shape in column order, a scale for each row, any
L; its scale_override is `loading`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
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

_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_MOST_STATE_BITS = 20


@dataclass(frozen=True)
class BitshiftTrellis:
    """A trellis whose paths start at the state of all zeros, so the first L / k weights have little choice.

    L: bits of a state, at most 20; 12, 14, 16 and 18 trade time for accuracy, fourfold for each step.
    k: bits per weight; k V must be whole, 1 to 8 and at most L: V = 2 gives halves of a bit.
    V: weights that a step emits. tile: (rows, columns). values: a name in `trellis_values.VALUES`.
    scales: "row" or "tensor". scale_dtype: "float16" or "float32", as stored.
    loading: rms of the scaled weights over that of the values; QTIP takes 0.9 to leave room for feedback.
    """

    L: int = 16
    k: float = 2
    V: int = 1
    tile: tuple[int, int] = (256, 1)
    values: str = "mul1"
    scales: Literal["row", "tensor"] = "row"
    scale_dtype: Literal["float16", "float32"] = "float16"
    loading: float = 1.0

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
        require(self.scales in ("row", "tensor"), f'{name}(scales={self.scales!r}): must be "row" or "tensor".')
        require(self.scale_dtype in _DTYPES, f"{name}(scale_dtype={self.scale_dtype!r}): must be {list(_DTYPES)}.")
        require(self.loading > 0, f"{name}(loading={self.loading}): must be above 0. Use 1.0.")
        value_table(self.values, self.L, self.V, self.step_bits)

    @property
    def trellis(self) -> Trellis:
        return _trellis(self.values, self.L, self.V, self.step_bits)

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
        if self.scales == "tensor" and n % rows:
            fits = [r for r in range(1, rows) if n % r == 0 and weights % r == 0 and k % (weights // r) == 0]
            tile = f"tiles of {fits[-1]} x {weights // fits[-1]}, or " if fits else ""
            raise BadRequest(
                f"Tiles of {rows} x {columns} do not divide the {n} outputs of a [{n}, {k}] layer, and outputs are "
                f'filled up only where each has its scale. Use {tile}scales="row".'
            )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        (n, k), (rows, columns) = shape, self.tile
        codes = Bits((-(-n // rows), k // columns, rows * columns // self.V), self.step_bits)
        return {"codes": codes, "scale": Array((self._scales(n), 1), _DTYPES[self.scale_dtype])}

    def fit(self, problem: LayerProblem) -> Side:
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
    """

    trellis: BitshiftTrellis = BitshiftTrellis()
    window: int | None = None

    refit_every = 0

    def __post_init__(self) -> None:
        require(
            self.window is None or self.window >= 1,
            f"TailBiting(window={self.window}): must be at least 1 step. Use 48, or None for half the tile.",
        )

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
        return encode_tiles(self, weight, target, feedback, side, columns)

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
    (n, width), (rows, columns) = target.shape, code.tile
    down, across = -(-n // rows), width // columns
    scaled = target.new_zeros((down * rows, width), dtype=torch.float32)
    scaled[:n] = target / side["scale"].to(target.dtype)
    tiles = scaled.view(down, rows, across, columns).permute(0, 2, 3, 1)
    states = path(tiles.reshape(down * across, -1, code.V)).view(down, across, -1)
    codes = (states & ((1 << code.step_bits) - 1)).to(torch.uint8)
    return codes, _values(code, states, side)[:n].to(target.dtype)


def _values(code: BitshiftTrellis, states: Tensor, side: Side) -> Tensor:
    """Values [N, w], float32, of states [row tiles, column tiles, T / V]."""
    (down, across, _), (rows, columns) = states.shape, code.tile
    tiles = code.trellis.values[states.long()].view(down, across, columns, rows)
    values = tiles.permute(0, 3, 1, 2).reshape(down * rows, across * columns)
    scale = side["scale"].float()
    return scale * (values if len(scale) == 1 else values[: len(scale)])


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
