"""Looking up 16 codes of a byte each in a small table at once: the inner step of `lookup_product`, as instructions.

A table of 16 numbers is one vector register, and a permutation by the codes looks all lanes up (AVX-512); of two
registers one instruction picks among 32. Larger tables take one of these for each 32 levels and choose by the higher
bits: 15 instructions for 16 codes of 8 bits. Elsewhere it is a loop over the codes.

Spelled out because LLVM's vectoriser makes a gather of it, which is ten to thirty times slower.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import for_range_slice, get_or_insert_function
from numba.extending import intrinsic

from lowbit.kernels.processor import has_feature

LANES = 16

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_CODES, _WORDS = ir.VectorType(_I8, LANES), ir.VectorType(_I32, LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


class Span(NamedTuple):
    """Codes start..stop-1 meet the table of `size` numbers, 16, 32, 64, 128 or 256, from place `table` on, and a scale.

    As many whole vectors are read and written as it takes, up to 15 places more.
    """

    table: int
    size: int
    scale: np.float32
    start: int
    stop: int


@numba.njit(nogil=True, cache=True)
def look_up(span, table, codes, values):  # type: ignore[no-untyped-def]
    """values[i] = scale * table[codes[i]] for a span; float32, uint8 and float32, contiguous, nothing is checked.

    Offsets in place of slices, which cost a count of references each.
    """
    if span.size == 16:
        _look_up(16, span, table, codes, values)  # type: ignore[call-arg]
    elif span.size == 32:
        _look_up(32, span, table, codes, values)  # type: ignore[call-arg]
    elif span.size == 64:
        _look_up(64, span, table, codes, values)  # type: ignore[call-arg]
    elif span.size == 128:
        _look_up(128, span, table, codes, values)  # type: ignore[call-arg]
    else:
        _look_up(256, span, table, codes, values)  # type: ignore[call-arg]


def look_up_one_by_one(span, table, codes, values):  # type: ignore[no-untyped-def]
    """The same on any processor."""
    for i in range(np.uint64(span.start), np.uint64(span.stop)):
        values[i] = span.scale * table[np.uint64(span.table) + codes[i]]


@intrinsic(prefer_literal=True)
def _look_up(context, size, span, table, codes, values):  # type: ignore[no-untyped-def]
    """`look_up` in a table of a constant size."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not has_feature("avx512f"):
            inner = types.void(*signature.args[1:])
            return context.compile_internal(builder, look_up_one_by_one, inner, arguments[1:])
        lanes = _Lanes(context, builder, signature, arguments)
        start, stop = lanes.field("start"), lanes.field("stop")
        with for_range_slice(builder, start, stop, ir.Constant(_I64, LANES), _I64) as (at, _):
            lanes.step(at)
        return context.get_dummy_value()

    return types.void(size, span, table, codes, values), generate


class _Lanes:
    """Writes the look-up of 16 codes; holds the addresses, and the table in registers."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any):
        self.builder, self.span, self.fields = builder, arguments[1], signature.args[1].fields
        table, self.codes, self.values = (
            context.make_array(kind)(context, builder, argument).data
            for kind, argument in zip(signature.args[2:], arguments[2:], strict=True)
        )
        empty = ir.Constant(_FLOATS, ir.Undefined)
        first = builder.insert_element(empty, self.field("scale"), ir.Constant(_I32, 0))
        self.scale = builder.shuffle_vector(first, empty, ir.Constant(_WORDS, [0] * LANES))
        table = builder.gep(table, [self.field("table")])
        self.registers = [
            self._load(table, _FLOATS, ir.Constant(_I64, at)) for at in range(0, signature.args[0].literal_value, LANES)
        ]

    def field(self, name: str) -> Any:
        return self.builder.extract_value(self.span, self.fields.index(name))

    def step(self, at: Any) -> None:
        """16 values from place `at` on."""
        builder = self.builder
        codes = builder.zext(self._load(self.codes, _CODES, at), _WORDS)
        values = builder.fmul(self.scale, self._pick(self.registers, codes))
        address = builder.bitcast(builder.gep(self.values, [at]), _FLOATS.as_pointer())
        builder.store(values, address, align=1)

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

    def _load(self, data: Any, kind: Any, at: Any) -> Any:
        return self.builder.load(self.builder.bitcast(self.builder.gep(data, [at]), kind.as_pointer()), align=1)

    def _call(self, name: str, *arguments: Any) -> Any:
        kind = ir.FunctionType(_FLOATS, [argument.type for argument in arguments])
        return self.builder.call(get_or_insert_function(self.builder.module, kind, name), arguments)  # type: ignore[no-untyped-call]
