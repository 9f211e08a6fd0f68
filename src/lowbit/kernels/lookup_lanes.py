"""Looking up 16 codes of a byte each in a small table at once: the inner step of `lookup_product`, as instructions.

A table of 16 numbers is one vector register, and a permutation by the codes looks all lanes up (AVX-512); of two
registers one instruction picks among 32. Larger tables take one of these for each 32 levels and choose by the higher
bits: 15 instructions for 16 codes of 8 bits. The table is worked out in its registers, a few instructions for each 16
levels. Elsewhere it is a loop over the codes.

Spelled out because LLVM's vectoriser makes a gather of it, which is ten to thirty times slower.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once_value, for_range_slice, get_or_insert_function
from numba.extending import intrinsic

from lowbit.kernels.processor import has_feature

LANES = 16

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_CODES, _WORDS = ir.VectorType(_I8, LANES), ir.VectorType(_I32, LANES)
_FLOATS = ir.VectorType(_F32, LANES)


class Span(NamedTuple):
    """Codes start..stop-1 and their table, see `look_up`; all integers, sets and numbers the places of the first.

    As many whole vectors are read and written as it takes, up to 15 places more.
    """

    sets: int
    numbers: int
    terms: int
    start: int
    stop: int


@intrinsic(prefer_literal=True)
def look_up(context, size, span, sets, numbers, codes, values):  # type: ignore[no-untyped-def]
    """values[i] = table[codes[i]] for a span and a table of a constant size: 16, 32, 64, 128 or 256 numbers.

    table: the sum of `terms` sets, one after the other, times a number each, in their order; or, with no terms,
    s (k clip(code - z, low, high)) of five numbers s, k, z, low, high.
    sets, numbers, values: float32, codes: uint8; contiguous, nothing is checked. Offsets in place of slices, which
    cost a count of references each.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not has_feature("avx512f"):
            return context.compile_internal(builder, look_up_one_by_one, signature, arguments)
        lanes = _Lanes(context, builder, signature, arguments)
        with builder.if_else(builder.icmp_signed("==", lanes.terms, ir.Constant(_I64, 0))) as (bent, summed):
            with bent:
                lanes.bend()
            with summed:
                lanes.add_up()
        registers = [builder.load(register) for register in lanes.table]
        with for_range_slice(builder, lanes.start, lanes.stop, ir.Constant(_I64, LANES), _I64) as (at, _):
            lanes.step(registers, at)
        return context.get_dummy_value()

    return types.void(size, span, sets, numbers, codes, values), generate


def look_up_one_by_one(size, span, sets, numbers, codes, values):  # type: ignore[no-untyped-def]
    """`look_up` on any processor."""
    table, n = np.empty(size, np.float32), numbers[span.numbers : span.numbers + max(span.terms, 5)]
    for i in range(size):
        if span.terms == 0:
            table[i] = n[0] * (n[1] * min(max(np.float32(i) - n[2], n[3]), n[4]))
        else:
            table[i] = n[0] * sets[span.sets + i]
    for term in range(1, span.terms):
        for i in range(size):
            table[i] += n[term] * sets[span.sets + term * size + i]
    for i in range(np.uint64(span.start), np.uint64(span.stop)):
        values[i] = table[codes[i]]


class _Lanes:
    """Writes the instructions; holds the addresses, and the table in registers."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any):
        self.builder, fields = builder, signature.args[1].fields
        self.size = signature.args[0].literal_value
        self.sets, self.numbers, self.codes, self.values = (
            context.make_array(kind)(context, builder, argument).data
            for kind, argument in zip(signature.args[2:], arguments[2:], strict=True)
        )
        places = {name: builder.extract_value(arguments[1], i) for i, name in enumerate(fields)}
        self.terms, self.start, self.stop = places["terms"], places["start"], places["stop"]
        self.sets = builder.gep(self.sets, [places["sets"]])
        self.numbers = builder.gep(self.numbers, [places["numbers"]])
        zeros = ir.Constant(_FLOATS, [0.0] * LANES)
        self.table = [
            alloca_once_value(builder, zeros)  # type: ignore[no-untyped-call]
            for _ in range(self.size // LANES)
        ]

    def add_up(self) -> None:
        """The table as a sum of terms."""
        builder = self.builder
        for i, register in enumerate(self.table):
            builder.store(self._term(ir.Constant(_I64, 0), i), register)
        one = ir.Constant(_I64, 1)
        with for_range_slice(builder, one, self.terms, one, _I64) as (term, _):
            for i, register in enumerate(self.table):
                builder.store(builder.fadd(builder.load(register), self._term(term, i)), register)

    def bend(self) -> None:
        """The table as a clipped affine function of the code."""
        builder = self.builder
        s, k, z, low, high = (self._number(ir.Constant(_I64, i)) for i in range(5))
        for i, register in enumerate(self.table):
            codes = ir.Constant(_FLOATS, [float(LANES * i + lane) for lane in range(LANES)])
            above = self._call("llvm.maxnum.v16f32", builder.fsub(codes, z), low)
            clipped = self._call("llvm.minnum.v16f32", above, high)
            builder.store(builder.fmul(s, builder.fmul(k, clipped)), register)

    def step(self, registers: list[Any], at: Any) -> None:
        """16 values from place `at` on."""
        codes = self.builder.zext(self._load(self.codes, _CODES, at), _WORDS)
        address = self.builder.bitcast(self.builder.gep(self.values, [at]), _FLOATS.as_pointer())
        self.builder.store(self._pick(registers, codes), address, align=1)

    def _pick(self, registers: list[Any], codes: Any) -> Any:
        """What the lowest bits of 16 codes select among the numbers of 1, 2, 4 .. registers."""
        if len(registers) == 1:
            return self._call("llvm.x86.avx512.permvar.sf.512", registers[0], codes)
        if len(registers) == 2:
            return self._call("llvm.x86.avx512.vpermi2var.ps.512", registers[0], codes, registers[1])
        half = len(registers) // 2
        bit = self.builder.and_(codes, ir.Constant(_WORDS, [half * LANES] * LANES))
        low, high = self._pick(registers[:half], codes), self._pick(registers[half:], codes)
        return self.builder.select(self.builder.icmp_unsigned("!=", bit, ir.Constant(_WORDS, [0] * LANES)), high, low)

    def _term(self, term: Any, register: int) -> Any:
        """A number times 16 levels of its set."""
        builder = self.builder
        at = builder.add(builder.mul(term, ir.Constant(_I64, self.size)), ir.Constant(_I64, register * LANES))
        return builder.fmul(self._number(term), self._load(self.sets, _FLOATS, at))

    def _number(self, at: Any) -> Any:
        """A number in all lanes."""
        empty = ir.Constant(_FLOATS, ir.Undefined)
        number = self.builder.load(self.builder.gep(self.numbers, [at]))
        first = self.builder.insert_element(empty, number, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(first, empty, ir.Constant(_WORDS, [0] * LANES))

    def _load(self, data: Any, kind: Any, at: Any) -> Any:
        return self.builder.load(self.builder.bitcast(self.builder.gep(data, [at]), kind.as_pointer()), align=1)

    def _call(self, name: str, *arguments: Any) -> Any:
        kind = ir.FunctionType(_FLOATS, [argument.type for argument in arguments])
        return self.builder.call(get_or_insert_function(self.builder.module, kind, name), arguments)  # type: ignore[no-untyped-call]
