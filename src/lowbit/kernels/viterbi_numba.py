"""The Viterbi search of `lowbit.kernels.viterbi` on the CPU, in 16-bit integers.

Between two steps only the 2^(L-b) *edges* (the low L - b bits of a state) matter, b bits entering at each step:

    metric'[e] = min over d of ( metric[(d 2^(L-b) + e) div 2^b] + |target - value[d 2^(L-b) + e]|^2 )

With e = (m, c), c its low b bits, the predecessors of all c at the same m are the same 2^b edges (d, m): a butterfly,
whose inputs are read once. Lanes run along m, values lie in the order [m / 32][c][d][m mod 32] they are read in, and
the outputs are woven back to the order (m, c) by b shuffles. Where a step takes in so many bits that m is short,
lanes run along c instead (a fan).

Metrics are less the smallest of the step before, so they never run over; far-off ones saturate. A squared distance is
the high half of a 16-bit square. Some sequences walk together, so that a piece of the value table is read from the
second-level cache once for all of them. Decisions are packed, b bits (4 for b = 3) each.

Cost: 2^L candidates a step at 5 instructions for 32 of them; memory, for each sequence in work, 2^(L-b) b / 8 bytes a
step. The result does not depend on the number of threads.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from lowbit.kernels.viterbi_lanes import BUTTERFLY, FAN, decisions_per_byte, relax

_MOST_LANES = 32
_BUTTERFLY_BITS = 4
_TOGETHER = 2  # measured: 1 and 4 are slower
# Targets reach this much further than the largest value, so that a clipped outlier still tells values apart.
_ROOM = 1.3
# Mean squared distance, in units of the metric, below which rounding it costs distortion: with this bound the loss
# against float64 stays under 0.03 % at 1 to 6 bits (L = 13 and 14). Too many doublings, and targets where values are
# sparse saturate against all of them; with at most 3 the loss is 0.2 % at 7 bits and 5 % at 8.
_FINE = 5.0
_MOST_DOUBLINGS = 3
_UNREACHED = np.uint16(65535)


class Layout(NamedTuple):
    """Where the pieces of a step lie; sizes in bytes unless said otherwise.

    length, bits: L and b. doublings: of a distance before it is squared. pieces: number of them in a step;
    split: pieces that share predecessors; advance: from their metrics to those of the next; stride, repeat, pitch:
    see `relax`; values, out, decisions: size of a piece. inner, per_byte, width: the decision of edge e is the
    (e mod 2^inner mod per_byte)-th of `width` bits in byte (e mod 2^inner div per_byte, e div 2^inner).
    """

    length: int
    bits: int
    doublings: int
    pieces: int
    split: int
    advance: int
    stride: int
    repeat: int
    values: int
    out: int
    decisions: int
    pitch: int
    inner: int
    per_byte: int
    width: int

    @property
    def edges(self) -> int:
        return 1 << (self.length - self.bits)

    @property
    def decision_bytes(self) -> int:
        return self.edges // self.per_byte


@dataclass(frozen=True, eq=False)
class IntegerTrellis:
    """A trellis made ready: values times `scale` as int16, in natural order [2^L, V] and in that of the pieces.

    shape: what `relax` is compiled for.
    """

    layout: Layout
    shape: tuple
    scale: float
    natural: Tensor
    pieces: Tensor


def prepare(values: Tensor, bits: int) -> IntegerTrellis:
    """values: [2^L, V]; bits: those that enter at a step, 1 to 8 and at most L - 1."""
    length, dimension = len(values).bit_length() - 1, values.shape[1]
    edges, branches = 1 << (length - bits), 1 << bits
    successors, groups = min(branches, edges), max(1, edges >> bits)
    scale = 32767 / (_ROOM * float(values.abs().max()))
    natural = (values * scale).round().to(torch.int16)
    doublings = _doublings(float(values.square().mean()) * scale**2, bits / dimension)
    if bits <= _BUTTERFLY_BITS and 2 * bits <= length:
        kind, lanes = BUTTERFLY, min(_MOST_LANES, groups)
        table = natural.view(branches, groups // lanes, lanes, branches, dimension).permute(1, 3, 0, 4, 2)
        split, advance, written, inner, (per_byte, width) = 1, 2 * lanes, branches, bits, decisions_per_byte(bits)
    else:
        kind, lanes = FAN, min(_MOST_LANES, successors)
        table = natural.view(branches, groups, successors // lanes, lanes, dimension).permute(1, 2, 0, 4, 3)
        split, advance, written, inner, (per_byte, width) = successors // lanes, 2, 1, 0, (1, 8)
    layout = Layout(
        length, bits, doublings,
        pieces=edges // (lanes * written), split=split, advance=advance, stride=2 * groups,
        repeat=max(0, 2 * bits - length), values=2 * written * branches * dimension * lanes, out=2 * written * lanes,
        decisions=lanes, pitch=edges >> inner, inner=inner, per_byte=per_byte, width=width,
    )  # fmt: skip
    sizes = (branches, dimension, lanes, doublings + 1)
    return IntegerTrellis(layout, (kind, *((0,) * size for size in sizes)), scale, natural, table.contiguous())


def _doublings(mean_square: float, rate: float) -> int:
    """How often distances are doubled; mean_square: of the integer values; rate: bits for each of them."""
    doublings, distance = 0, mean_square * 4.0**-rate / 65536
    while distance < _FINE and doublings < _MOST_DOUBLINGS:
        doublings, distance = doublings + 1, 4 * distance
    return doublings


def search(targets: Tensor, trellis: IntegerTrellis, first: Tensor, last: Tensor) -> Tensor:
    """The states [B, T] int32; arguments as for `lowbit.kernels.viterbi.search_reference`."""
    (sequences, steps, _), layout = targets.shape, trellis.layout
    wanted = (targets * trellis.scale).round().clamp(-32767, 32767).to(torch.int16).contiguous()
    tables = trellis.pieces.numpy(), trellis.natural.numpy()
    share = max(1, -(-sequences // numba.get_num_threads()))
    together = min(_TOGETHER, share)
    states = torch.empty((sequences, steps), dtype=torch.int32)
    kept = _WORK.arrays(max(1, -(-sequences // share)), steps, together, layout)

    def work(start: int) -> None:
        mine, (metrics, decisions) = slice(start, start + share), kept[start // share]
        ends = first[mine].numpy(), last[mine].numpy()
        _search(trellis.shape, layout, metrics, wanted[mine].numpy(), *tables, *ends, decisions, states[mine].numpy())

    # Threads and not numba's parallel loops, which cannot carry the tuples in `shape`.
    if share >= sequences:
        work(0)
    else:
        with ThreadPoolExecutor(len(kept)) as pool:
            list(pool.map(work, range(0, sequences, share)))
    return states


class _Workspace(threading.local):
    """Metrics and decisions for each worker of a search, kept by the calling thread for its next one: where calls
    are short, as in LDLQ, fresh pages cost as much as the search."""

    key: tuple[int, ...] = ()
    kept: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def arrays(self, workers: int, steps: int, together: int, layout: Layout) -> tuple[tuple[np.ndarray, ...], ...]:
        """For each worker uint16 [2, together, edges] and uint8 [steps, together, bytes]."""
        key = workers, steps, together, layout.edges, layout.decision_bytes
        if key != self.key:
            metrics = torch.empty((workers, 2, together, layout.edges), dtype=torch.int16).numpy().view(np.uint16)
            decisions = torch.empty((workers, steps, together, layout.decision_bytes), dtype=torch.uint8).numpy()
            self.key, self.kept = key, tuple(zip(metrics, decisions, strict=True))
        return self.kept


_WORK = _Workspace()


@numba.njit(nogil=True, cache=True)
def _search(shape, layout, metrics, targets, table, natural, first, last, decisions, states):  # type: ignore[no-untyped-def]
    """Sequences one after the other, as many together as there are metrics [2, together, edges] for."""
    together = metrics.shape[1]
    for start in range(0, len(targets), together):
        some = min(together, len(targets) - start)
        entered = 0
        for g in range(some):
            entered = _enter(layout, targets[start + g], natural, first[start + g], metrics[0, g])
        _walk(shape, layout, metrics, targets[start : start + some], table, entered, decisions)
        for g in range(some):
            ends = metrics[(targets.shape[1] - entered) % 2, g]
            edge = last[start + g] if last[start + g] >= 0 else np.argmin(ends)
            _trace(layout, decisions[:, g], entered, first[start + g], edge, states[start + g])


@numba.njit(cache=True)
def _enter(layout, targets, values, first, metrics):  # type: ignore[no-untyped-def]
    """Metrics after as many steps as leave one to reach every edge from edge `first`, each on its only path.

    Returns that number of steps. -1 for first: all edges start at 0, no steps are taken.
    """
    bits, edges = layout.bits, len(metrics)
    if first < 0:
        metrics[:] = 0
        return 0
    steps = max(0, (layout.length - bits - 1) // bits)
    cost, base = np.zeros(1, np.int32), first
    for t in range(steps):
        base = (base << bits) % len(values)
        longer = np.repeat(cost, 1 << bits)
        for j in range(targets.shape[1]):
            target = np.int32(targets[t, j])
            for i in range(len(longer)):
                longer[i] += _distance(target, np.int32(values[base + i, j]), layout.doublings)
        cost = longer
    metrics[:] = _UNREACHED
    reached, least = base % edges, cost.min()
    # The step to come adds at most 16383 V: a reached edge stays below one that is not.
    most = np.int32(65534 - 16383 * targets.shape[1])
    for i in range(len(cost)):
        metrics[reached + i] = np.uint16(min(cost[i] - least, most))
    return steps


@numba.njit(cache=True)
def _distance(target, value, doublings):  # type: ignore[no-untyped-def]
    """The squared distance as `relax` computes it."""
    difference = min(max(target - value, -32768), 32767) << doublings
    difference = min(max(difference, -32768), 32767)
    return np.int32(difference * difference >> 16)


@numba.njit(cache=True)
def _walk(shape, layout, metrics, targets, table, entered, decisions):  # type: ignore[no-untyped-def]
    """All steps from step `entered` on of some sequences together; metrics[0] holds where they start."""
    together, steps, dimension = targets.shape
    lanes = len(shape[3])
    lowest, low = np.empty((together, lanes), np.uint16), np.zeros(together, np.uint16)
    rows = metrics.ctypes.data, table.ctypes.data, targets.ctypes.data, decisions.ctypes.data, lowest.ctypes.data
    metrics_at, values_at, targets_at, decisions_at, lowest_at = rows
    for t in range(entered, steps):
        lowest[:] = _UNREACHED
        prev = metrics_at + (t - entered) % 2 * metrics.strides[0]
        out = metrics_at + (t + 1 - entered) % 2 * metrics.strides[0]
        for piece in range(layout.pieces):
            for g in range(together):
                relax(  # type: ignore[call-arg]
                    shape,
                    prev + g * metrics.strides[1] + piece // layout.split * layout.advance,
                    layout.stride,
                    layout.repeat,
                    low[g],
                    targets_at + 2 * dimension * (g * steps + t),
                    values_at + piece * layout.values,
                    out + g * metrics.strides[1] + piece * layout.out,
                    lowest_at + 2 * lanes * g,
                    decisions_at + t * decisions.strides[0] + g * decisions.strides[1] + piece * layout.decisions,
                    layout.pitch,
                )
        for g in range(together):
            low[g] = lowest[g].min()


@numba.njit(cache=True)
def _trace(layout, decisions, entered, first, edge, states):  # type: ignore[no-untyped-def]
    """The states of the best path that ends at `edge`; decisions: [steps, bytes]."""
    bits, free = layout.bits, layout.length - layout.bits
    for t in range(len(states) - 1, entered - 1, -1):
        c, m = edge & ((1 << layout.inner) - 1), edge >> layout.inner
        byte = decisions[t, c // layout.per_byte * layout.pitch + m]
        decision = (byte >> (c % layout.per_byte * layout.width)) & ((1 << bits) - 1)
        state = (np.int64(decision) << free) | edge
        states[t] = state
        edge = state >> bits
    path = (first << (bits * entered)) | (edge & ((1 << (bits * entered)) - 1))
    for t in range(entered):
        states[t] = (path >> (bits * (entered - 1 - t))) & ((1 << layout.length) - 1)
