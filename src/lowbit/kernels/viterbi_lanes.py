"""The inner loop of the CPU's Viterbi search, spelled out as vector instructions.

One call of `relax` takes the metrics of some edges over one step (see `viterbi_numba` for what an edge is): 16-bit
unsigned, saturating metrics, up to 32 of them to an instruction, which LLVM maps to whatever the processor has.
Written out because LLVM's own vectoriser finds these loops for some shapes only: where it does not, they are
10 to 60 times slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


class _Lanes:
    """Writes instructions on vectors of `count` words of 16 bits (and as many bytes); addresses are 64-bit integers."""

    def __init__(self, builder: Any, count: int):
        self.builder, self.count = builder, count
        self.words, self.bytes, self.wide = (ir.VectorType(kind, count) for kind in (_I16, _I8, _I32))

    def load(self, address: Any) -> Any:
        return self.builder.load(self.builder.inttoptr(address, self.words.as_pointer()), align=2)

    def store(self, vector: Any, address: Any) -> None:
        self.builder.store(vector, self.builder.inttoptr(address, vector.type.as_pointer()), align=1)

    def splat(self, scalar: Any) -> Any:
        empty = ir.Constant(self.words, ir.Undefined)
        first = self.builder.insert_element(empty, scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(first, empty, self.constant(0, self.wide))

    def constant(self, value: int, kind: Any) -> Any:
        return ir.Constant(kind, [value] * self.count)

    def call(self, name: str, a: Any, b: Any) -> Any:
        kind = ir.FunctionType(self.words, [self.words, self.words])
        function = self.builder.module.declare_intrinsic(f"llvm.{name}.v{self.count}i16", (), kind)
        return self.builder.call(function, [a, b])

    def weave(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Vectors holding rows[c][m] in the order (m, c); as many rows as a power of two."""
        if len(rows) == 1:
            return rows
        order = [lane + self.count * side for lane in range(self.count) for side in (0, 1)]
        halves = [ir.Constant(self.wide, order[: self.count]), ir.Constant(self.wide, order[self.count :])]
        pairs = zip(self.weave(rows[::2]), self.weave(rows[1::2]), strict=True)
        return [self.builder.shuffle_vector(a, b, half) for a, b in pairs for half in halves]


@dataclass(frozen=True)
class _Piece:
    """What a step needs to know about one piece of work; all but the first three are addresses or byte counts."""

    lanes: _Lanes
    branches: int
    doublings: int
    targets: list[Any]
    prev: Any
    stride: Any
    repeat: Any
    low: Any
    values: Any
    out: Any
    lowest: Any
    decisions: Any
    pitch: Any

    def candidate(self, before: Any, index: Any) -> Any:
        """`before` plus the squared distance of the targets to the index-th row of values, 16383 a term at most."""
        lanes, builder = self.lanes, self.lanes.builder
        row_bytes = 2 * lanes.count * len(self.targets)
        row = builder.add(self.values, builder.mul(index, _int(row_bytes)))
        for j, target in enumerate(self.targets):
            difference = lanes.call("ssub.sat", target, lanes.load(builder.add(row, _int(2 * lanes.count * j))))
            for _ in range(self.doublings):
                difference = lanes.call("sadd.sat", difference, difference)
            wide = builder.sext(difference, lanes.wide)
            square = builder.lshr(builder.mul(wide, wide), lanes.constant(16, lanes.wide))
            before = lanes.call("uadd.sat", before, builder.trunc(square, lanes.words))
        return before


def _int(value: int) -> Any:
    return ir.Constant(_I64, value)


def decisions_per_byte(bits: int) -> tuple[int, int]:
    """(how many decisions of a butterfly share a byte, bits each of them gets); bits: 1 to 4."""
    width = 4 if bits == 3 else bits
    return min(8 // width, 1 << bits), width


def _butterfly(p: _Piece) -> None:
    """All 2^b successors c of `lanes` groups m, from their 2^b common predecessors d."""
    lanes, builder = p.lanes, p.lanes.builder
    low, least = lanes.splat(p.low), lanes.load(p.lowest)
    before = [
        builder.sub(lanes.load(builder.add(p.prev, builder.mul(p.stride, _int(d)))), low) for d in range(p.branches)
    ]
    per_byte, width = decisions_per_byte(p.branches.bit_length() - 1)
    rows, packed = [], lanes.constant(0, lanes.bytes)
    for c in range(p.branches):
        best, chosen = p.candidate(before[0], _int(c * p.branches)), lanes.constant(0, lanes.bytes)
        for d in range(1, p.branches):
            metric = p.candidate(before[d], _int(c * p.branches + d))
            better = builder.icmp_unsigned("<", metric, best)
            best = builder.select(better, metric, best)
            chosen = builder.select(better, lanes.constant(d, lanes.bytes), chosen)
        rows.append(best)
        least = lanes.call("umin", least, best)
        slot = c % per_byte
        shifted = builder.shl(chosen, lanes.constant(width * slot, lanes.bytes))
        packed = builder.or_(packed, shifted) if slot else chosen
        if slot == per_byte - 1:
            lanes.store(packed, builder.add(p.decisions, builder.mul(p.pitch, _int(c // per_byte))))
    lanes.store(least, p.lowest)
    for i, vector in enumerate(lanes.weave(rows)):
        lanes.store(vector, builder.add(p.out, _int(2 * lanes.count * i)))


def _fan(p: _Piece) -> None:
    """`lanes` successors c of one group m, from all its predecessors, each of them 2^repeat times."""
    lanes, builder = p.lanes, p.lanes.builder
    best = cgutils.alloca_once_value(builder, lanes.constant(65535, lanes.words))  # type: ignore[no-untyped-call]
    chosen = cgutils.alloca_once_value(builder, lanes.constant(0, lanes.bytes))  # type: ignore[no-untyped-call]
    with cgutils.for_range(builder, _int(p.branches)) as loop:
        address = builder.add(p.prev, builder.mul(p.stride, builder.lshr(loop.index, p.repeat)))
        before = builder.sub(builder.load(builder.inttoptr(address, _I16.as_pointer()), align=2), p.low)
        metric = p.candidate(lanes.splat(before), loop.index)
        better = builder.icmp_unsigned("<", metric, builder.load(best))
        branch = builder.trunc(lanes.splat(builder.trunc(loop.index, _I16)), lanes.bytes)
        builder.store(builder.select(better, metric, builder.load(best)), best)
        builder.store(builder.select(better, branch, builder.load(chosen)), chosen)
    lanes.store(builder.load(chosen), p.decisions)
    lanes.store(builder.load(best), p.out)
    lanes.store(lanes.call("umin", lanes.load(p.lowest), builder.load(best)), p.lowest)


_KINDS = {1: _butterfly, 2: _fan}
BUTTERFLY: tuple[int, ...] = (0,)
FAN: tuple[int, ...] = (0, 0)


@intrinsic
def relax(typingctx, shape, prev, stride, repeat, low, targets, values, out, lowest, decisions, pitch):  # type: ignore[no-untyped-def]
    """One piece of one step.

    shape: five tuples whose lengths, known when this is compiled, are: the kind (BUTTERFLY or FAN), 2^b, V, the
    lanes, and 1 + how often distances are doubled before they are squared.
    low: uint16, subtracted from the metrics before. The others are addresses or byte counts, int64: prev uint16
    metrics, those of the next predecessor `stride` bytes on; targets int16 [V]; values int16, for a butterfly
    [c][d][V][lanes], for a fan [d][V][lanes]; out uint16 metrics; lowest uint16 [lanes], a running minimum;
    decisions uint8 [.][lanes], rows `pitch` bytes apart.
    """
    sizes = [part.count for part in shape.types]

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind, branches, dimension, count, doublings = sizes
        _, prev, stride, repeat, low, targets, values, out, lowest, decisions, pitch = args
        lanes = _Lanes(builder, count)
        at = [builder.inttoptr(builder.add(targets, _int(2 * j)), _I16.as_pointer()) for j in range(dimension)]
        wanted = [lanes.splat(builder.load(pointer, align=2)) for pointer in at]
        rest = (prev, stride, repeat, low, values, out, lowest, decisions, pitch)
        _KINDS[kind](_Piece(lanes, branches, doublings - 1, wanted, *rest))
        return context.get_dummy_value()

    return types.none(shape, prev, stride, repeat, low, targets, values, out, lowest, decisions, pitch), codegen
