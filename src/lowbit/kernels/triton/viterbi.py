"""The Viterbi search of `lowbit.kernels.viterbi` on a GPU: bit for bit what `viterbi_numba` finds.

A step turns the metrics of the 2^(L-b) edges before it into those after it,

    metric'[m, c] = min over d of ( metric[d 2^(L-2b) + m] + |target - value[d, m, c]|^2 )

with c the b newest bits of an edge, d the b oldest of a state: the metric of a predecessor is read once for all its
successors, and values lie in the order they are read in. One program walks through one sequence: its metrics, 64 KiB
at L - b = 14 as 16-bit integers, twice, stay in the first-level cache, and steps are parted by a barrier of the
program's threads, not of the GPU. So it takes as many sequences as multiprocessors, a hundred or more, to fill a GPU;
LDLQ gives N K' / T of them at a time for tiles K' wide, or all layers that share an input together.

Arithmetic is that of `viterbi_numba`: saturating 16-bit metrics less the smallest of the step before, distances as the
high half of a 16-bit square; the first of equals wins. Cost: 2^L candidates a step at about ten operations, and
2^(L-b) bytes for its decisions, which make up nearly all of the memory. Not measured for want of a GPU: eight warps a
program, the block of 1024 edges, and whether decisions should be packed.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit.kernels.viterbi import Trellis

_BLOCK = 1024
_WARPS = 8
# Bytes of decisions at a time; sequences beyond them wait.
_DECISIONS = 1 << 30
_UNREACHED = 65535
# Sequences that one program traces back, each in a lane.
_TRACED = 32


@dataclass(frozen=True)
class SearchPlan:
    """length, bits, dimension: L, b and V. doublings: of a distance before it is squared. most: edges in a block."""

    length: int
    bits: int
    dimension: int
    doublings: int
    most: int

    @property
    def edges(self) -> int:
        return 1 << (self.length - self.bits)

    @property
    def successors(self) -> int:
        """c: those of an edge that differ; fewer than 2^b where a state forgets more than it keeps."""
        return min(1 << self.bits, self.edges)

    @property
    def groups(self) -> int:
        """m in a block."""
        return max(1, min(self.most, self.edges) // self.successors)


def search(targets: Tensor, trellis: Trellis, first: Tensor, last: Tensor) -> Tensor:
    """The states [B, T] int32, on the device of targets; arguments as for `lowbit.kernels.viterbi.search_reference`."""
    integer, device = trellis.integer, targets.device
    layout = integer.layout
    plan = SearchPlan(layout.length, layout.bits, targets.shape[2], layout.doublings, _BLOCK)
    wanted = (targets * integer.scale).round().clamp(-32767, 32767).to(torch.int16).contiguous()
    values, first, last = integer.natural.to(device), first.to(device), last.to(device)
    states = torch.empty(targets.shape[:2], dtype=torch.int32, device=device)
    some = max(1, _DECISIONS // (max(1, targets.shape[1]) * plan.edges))
    for start in range(0, len(targets), some):
        part = slice(start, start + some)
        states[part] = _search(wanted[part], values, first[part], last[part], plan)
    return states


def _search(targets: Tensor, values: Tensor, first: Tensor, last: Tensor, plan: SearchPlan) -> Tensor:
    (sequences, steps, _), device = targets.shape, targets.device
    entered, metrics = _enter(targets, values, first, plan)
    decisions = torch.empty((sequences, steps, plan.edges), dtype=torch.uint8, device=device)
    _walk[(sequences,)](targets, values, metrics, decisions, steps, entered, plan, num_warps=_WARPS)
    ends = metrics[:, (steps - entered) % 2].int() & _UNREACHED
    edge = torch.where(last < 0, ends.argmin(1), last)
    states = torch.empty((sequences, steps), dtype=torch.int32, device=device)
    grid = (triton.cdiv(sequences, _TRACED),)
    _trace[grid](decisions, first, edge, states, sequences, steps, entered, plan, _TRACED, num_warps=1)
    return states


def _enter(targets: Tensor, values: Tensor, first: Tensor, plan: SearchPlan) -> tuple[int, Tensor]:
    """Steps that leave one way to reach every edge from `first`, and the metrics after them, int16 [B, 2, edges].

    None, and metrics of zero, where paths may start anywhere.
    """
    metrics = torch.zeros((len(targets), 2, plan.edges), dtype=torch.int16, device=targets.device)
    if bool((first < 0).all()):
        return 0, metrics
    steps = max(0, (plan.length - plan.bits - 1) // plan.bits)
    cost, base = torch.zeros((len(targets), 1), dtype=torch.int32, device=targets.device), first
    for t in range(steps):
        base = (base << plan.bits) % len(values)
        cost = cost.repeat_interleave(1 << plan.bits, 1)
        states = base[:, None] + torch.arange(cost.shape[1], device=targets.device)
        difference = (targets[:, t, None].int() - values[states].int()).clamp(-32768, 32767)
        difference = (difference << plan.doublings).clamp(-32768, 32767)
        cost = cost + (difference * difference >> 16).sum(-1, dtype=torch.int32)
    # The step to come adds at most 16383 V: a reached edge stays below one that is not.
    metric = (cost - cost.amin(1, keepdim=True)).clamp_max(_UNREACHED - 1 - 16383 * plan.dimension)
    reached = (base % plan.edges)[:, None] + torch.arange(cost.shape[1], device=targets.device)
    metrics[:, 0] = -1
    metrics[:, 0].scatter_(1, reached, metric.to(torch.int16))
    return steps, metrics


@triton.jit
def _walk(targets, values, metrics, decisions, steps, entered, plan: tl.constexpr):  # type: ignore[no-untyped-def]
    """All steps from step `entered` on of the program's sequence; metrics[:, 0] hold where it starts."""
    EDGES: tl.constexpr = plan.edges
    V: tl.constexpr = plan.dimension
    C: tl.constexpr = plan.successors
    M: tl.constexpr = plan.groups
    BLOCKS: tl.constexpr = EDGES // (M * C)
    sequence = tl.program_id(0).to(tl.int64)
    targets += sequence * steps * V
    metrics += sequence * 2 * EDGES
    decisions += sequence * steps * EDGES
    group, successor = tl.arange(0, M)[:, None], tl.arange(0, C)[None, :]
    low = tl.zeros([], tl.int32)
    for t in range(entered, steps):
        before, after = metrics + (t - entered) % 2 * EDGES, metrics + (t + 1 - entered) % 2 * EDGES
        lowest = tl.zeros([], tl.int32) + 65535
        for block in range(BLOCKS):
            m = block * M + group
            edge = m * C + successor
            best, chosen = tl.full([M, C], 65536, tl.int32), tl.zeros([M, C], tl.int32)
            for d in range(1 << plan.bits):
                metric = (tl.load(before + (d * EDGES >> plan.bits) + m).to(tl.int32) & 65535) - low
                for j in tl.static_range(V):
                    value = tl.load(values + (d * EDGES + edge) * V + j).to(tl.int32)
                    difference = tl.load(targets + t * V + j).to(tl.int32) - value
                    difference = tl.minimum(tl.maximum(difference, -32768), 32767) << plan.doublings
                    difference = tl.minimum(tl.maximum(difference, -32768), 32767)
                    metric = metric + (difference * difference >> 16)
                metric = tl.minimum(metric, 65535)
                better = metric < best
                best, chosen = tl.where(better, metric, best), tl.where(better, d, chosen)
            tl.store(after + edge, best.to(tl.int16))
            tl.store(decisions + t * EDGES + edge, chosen.to(tl.uint8))
            lowest = tl.minimum(lowest, tl.min(best))
        low = lowest
        tl.debug_barrier()


@triton.jit
def _trace(decisions, first, last, states, sequences, steps, entered, plan: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The states of the best paths that end at the edges `last`, one sequence a lane."""
    sequence = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mine = sequence < sequences
    FREE: tl.constexpr = plan.length - plan.bits
    edge = tl.load(last + sequence, mask=mine, other=0).to(tl.int32)
    for back in range(steps - entered):
        t = steps - 1 - back
        at = sequence.to(tl.int64) * steps + t
        decision = tl.load(decisions + (at << FREE) + edge, mask=mine, other=0).to(tl.int32)
        state = (decision << FREE) | edge
        tl.store(states + at, state, mask=mine)
        edge = state >> plan.bits
    # The steps before leave one way to where the path is.
    start = tl.load(first + sequence, mask=mine, other=0).to(tl.int64)
    path = (start << (plan.bits * entered)) | (edge & ((1 << (plan.bits * entered)) - 1))
    for t in range(entered):
        state = (path >> (plan.bits * (entered - 1 - t))) & ((1 << plan.length) - 1)
        tl.store(states + sequence.to(tl.int64) * steps + t, state.to(tl.int32), mask=mine)
