"""The inner loops of trellis products on the CPU, spelled out as vector instructions of 16 lanes.

A *word* holds the codes of S steps of b bits, S b <= 32, the first step in the highest bits. With the word before it,

    state of step i = L low bits of (before : word) shifted right by S b - (i + 1) b

is one funnel shift and one mask, by constants. Lanes are 16 words, so each step of all of them takes two instructions;
what a state stands for is a sum of bytes (multiply, and sum by a dot product with ones), a sum of two halves (multiply,
and move their bits to where float32 has them) or a gather from a table.

Written out because LLVM's own vectoriser finds neither the funnel shift nor the dot product.
"""

from dataclasses import astuple, dataclass
from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
PORTABLE_SUM, DOT_SUM, TABLE, HALF_SUM = range(4)
"""What makes a value of a state (see `state_values`): a sum of bytes, the same by the u8 x s8 dot product
(AVX512-VNNI), a table, a sum of halves."""

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)
_MEAN_SUM = 510
# A half's sign, mantissa and two lowest bits of the exponent where float32 has them; and 0x3B60 as float32.
_HALF_MASK, _HALF_FLIP = 0x81FFE000, 0x3F6C0000


@dataclass(frozen=True)
class Plan:
    """What the loops are compiled for; passed to them as the string `text`, which numba treats as a constant.

    bits, length, dimension: b, L and V. kind: of values. multiplier, increment: of computed ones. tokens: 1 to 4.
    columns: of a tile that the lanes of a vector lie in, 1, 2, 4, 8 or 16, so many lanes in each.
    period: 0 where each word lies in one column; or else each step's weights have activations of their own, which
    repeat every so many lanes: 1, 2, 4, 8 or 16.
    """

    bits: int
    length: int
    dimension: int
    kind: int
    multiplier: int
    increment: int
    tokens: int
    columns: int
    period: int = 0

    @property
    def steps(self) -> int:
        """S, the steps of a word."""
        return steps_of(self.bits)

    @property
    def together(self) -> int:
        """Steps that have their sums in registers at the same time: at most 16 vectors, or else one step's."""
        most = max(1, 16 // (self.tokens * self.dimension))
        return min(self.steps, 1 << (most.bit_length() - 1))

    @property
    def text(self) -> str:
        return " ".join(map(str, astuple(self)))


def _plan(text: Any) -> Plan:
    return Plan(*map(int, text.literal_value.split()))


def steps_of(bits: int) -> int:
    """S for codes of so many bits: the largest power of two, up to 16, whose codes fit in 32 bits."""
    return min(16, 1 << (32 // bits).bit_length() - 1)


def _swaps(bits: int, steps: int) -> list[tuple[int, int]]:
    """(distance, mask) of the rounds that turn round the order of `steps` (a power of two) groups of `bits` bits.

    A round is  word = (word & mask) << distance | (word >> distance) & mask.
    """
    rounds, width = [], bits
    while width < bits * steps:
        field = (1 << width) - 1
        rounds.append((width, sum(field << at for at in range(0, bits * steps, 2 * width))))
        width *= 2
    return rounds


class _Lanes:
    """Writes instructions on vectors of 16; addresses are 64-bit integers."""

    def __init__(self, builder: Any):
        self.builder = builder

    def load(self, address: Any, kind: Any) -> Any:
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, vector: Any, address: Any) -> None:
        self.builder.store(vector, self.builder.inttoptr(address, vector.type.as_pointer()), align=1)

    def shuffle(self, a: Any, b: Any, order: list[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), order))

    def splat(self, scalar: Any, kind: Any) -> Any:
        empty = ir.Constant(kind, ir.Undefined)
        return self.shuffle(self.builder.insert_element(empty, scalar, ir.Constant(_I32, 0)), empty, [0] * kind.count)

    def constant(self, value: int) -> Any:
        return ir.Constant(_WORDS, [value] * LANES)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)  # type: ignore[no-untyped-call]

    def state(self, plan: Plan, before: Any, word: Any, step: int) -> Any:
        """States of a step of 16 words; word: its codes in the highest bits; before: those of the word before in the
        lowest."""
        ends = plan.bits * (step + 1)
        window = word if ends == 32 else self.call("llvm.fshl.v16i32", _WORDS, before, word, self.constant(ends))
        return self.builder.and_(window, self.constant((1 << plan.length) - 1))


def _offset(builder: Any, address: Any, *factors: Any) -> Any:
    """address + the product of factors, integers or 64-bit values."""
    terms = [ir.Constant(_I64, factor) if isinstance(factor, int) else factor for factor in factors]
    term = terms[0]
    for factor in terms[1:]:
        term = builder.mul(term, factor)
    return builder.add(address, term)


def _byte_sum(lanes: _Lanes, kind: int, products: Any) -> Any:
    """The sums of the four bytes of 16 words, less their mean of 510."""
    builder = lanes.builder
    if kind == DOT_SUM:
        ones, start = lanes.constant(0x01010101), lanes.constant(-_MEAN_SUM)
        return lanes.call(
            "llvm.x86.avx512.vpdpbusd.512", _WORDS, start, _as_bytes(lanes, products), _as_bytes(lanes, ones)
        )
    mask = lanes.constant(0x00FF00FF)
    pairs = builder.add(builder.and_(products, mask), builder.and_(builder.lshr(products, lanes.constant(8)), mask))
    total = builder.add(builder.and_(pairs, lanes.constant(0xFFFF)), builder.lshr(pairs, lanes.constant(16)))
    return builder.sub(total, lanes.constant(_MEAN_SUM))


def _half_sum(lanes: _Lanes, products: Any) -> Any:
    """The sums of the two halves of 16 words, see `state_values`; exact, for the exponents are within 4."""
    builder, halves = lanes.builder, []
    for raised in (products, builder.shl(products, lanes.constant(16))):
        moved = builder.and_(builder.ashr(raised, lanes.constant(3)), lanes.constant(_HALF_MASK))
        halves.append(builder.bitcast(builder.xor(moved, lanes.constant(_HALF_FLIP)), _FLOATS))
    return builder.fadd(*halves)


def _as_bytes(lanes: _Lanes, words: Any) -> Any:
    return lanes.builder.bitcast(words, ir.VectorType(_I8, 4 * LANES))


@dataclass(frozen=True)
class _Values:
    """What states stand for. table: address of float32 [2^L, V], of no interest to computed ones."""

    lanes: _Lanes
    plan: Plan
    table: Any

    def of(self, states: Any) -> list[Any]:
        """V vectors of floats."""
        lanes, builder, plan = self.lanes, self.lanes.builder, self.plan
        if plan.kind == TABLE:
            places = builder.mul(states, lanes.constant(plan.dimension))
            return [self._gather(places, _offset(builder, self.table, 4 * v)) for v in range(plan.dimension)]
        products = builder.mul(states, lanes.constant(plan.multiplier))
        if plan.increment:
            products = builder.add(products, lanes.constant(plan.increment))
        if plan.kind == HALF_SUM:
            return [_half_sum(lanes, products)]
        return [builder.sitofp(_byte_sum(lanes, plan.kind, products), _FLOATS)]

    def _gather(self, places: Any, table: Any) -> Any:
        builder = self.lanes.builder
        start = builder.inttoptr(table, _F32.as_pointer())
        where = builder.gep(start, [places], source_etype=_F32)
        where.type = ir.VectorType(_F32.as_pointer(), LANES)
        bits = ir.VectorType(ir.IntType(1), LANES)
        arguments = (where, ir.Constant(bits, [1] * LANES), ir.Constant(_FLOATS, ir.Undefined))
        kind = ir.FunctionType(_FLOATS, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.gather.v16f32.v16p0")  # type: ignore[no-untyped-call]
        return builder.call(function, arguments)


class _View:
    """An array that a loop was given: its address, and shape and strides (in bytes) as 64-bit integers."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any):
        array = context.make_array(kind)(context, builder, value)
        self.builder, self.address = builder, builder.ptrtoint(array.data, _I64)
        self.shape = cgutils.unpack_tuple(builder, array.shape, kind.ndim)  # type: ignore[no-untyped-call]
        self.strides = cgutils.unpack_tuple(builder, array.strides, kind.ndim)  # type: ignore[no-untyped-call]

    def at(self, *index: Any) -> Any:
        """The address of an element, the first where an index is left out."""
        address = self.address
        for place, stride in zip(index, self.strides, strict=False):
            address = _offset(self.builder, address, place, stride)
        return address


@intrinsic(prefer_literal=True)
def spread(typingctx, bits, codes, words):  # type: ignore[no-untyped-def]
    """words [16 n] from the bit stream of their codes of `bits` bits; contiguous arrays, uint32 and uint8.

    For 1, 2, 3, 4, 6 and 8 bits only, where words are whole bytes.
    """
    size, steps = bits.literal_value, steps_of(bits.literal_value)
    width = size * steps

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        lanes = _Lanes(builder)
        source, target = (_View(context, builder, *pair) for pair in zip(signature.args[1:], args[1:], strict=True))
        vectors = builder.udiv(target.shape[0], ir.Constant(_I64, LANES))
        with cgutils.for_range(builder, vectors) as loop:
            word = _stream(lanes, _offset(builder, source.address, loop.index, 2 * width), width // 8)
            for distance, mask in _swaps(size, steps):
                kept, by = lanes.constant(mask), lanes.constant(distance)
                low, high = builder.and_(word, kept), builder.and_(builder.lshr(word, by), kept)
                word = builder.or_(builder.shl(low, by), high)
            if width < 32:
                word = builder.shl(word, lanes.constant(32 - width))
            lanes.store(word, _offset(builder, target.address, loop.index, 4 * LANES))
        return context.get_dummy_value()

    return types.none(bits, codes, words), codegen


def _stream(lanes: _Lanes, address: Any, size: int) -> Any:
    """16 words of `size` bytes, in 32 bits each."""
    # Loaded in quarters, for LLVM takes vectors of 48 bytes apart.
    empty = ir.Constant(ir.VectorType(_I8, LANES), [0] * LANES)
    quarters = [lanes.load(_offset(lanes.builder, address, LANES * q), empty.type) for q in range(size)]
    quarters += [empty] * (4 - size)
    halves = [lanes.shuffle(quarters[q], quarters[q + 1], [*range(2 * LANES)]) for q in (0, 2)]
    stream = lanes.shuffle(halves[0], halves[1], [*range(4 * LANES)])
    nothing = ir.Constant(stream.type, [0] * (4 * LANES))
    order = [size * lane + byte if byte < size else 4 * LANES for lane in range(LANES) for byte in range(4)]
    return lanes.builder.bitcast(lanes.shuffle(stream, nothing, order), _WORDS)


@intrinsic(prefer_literal=True)
def accumulate(typingctx, plan, words, before, x, table, sums):  # type: ignore[no-untyped-def]
    """sums[step, v, token, lane] += value of the step's state in words[j, lane] times x[token, j, .., .], over all j.

    words: uint32 [tiles, 16]; before: the same of the words before, their codes in the lowest bits. x: float32
    [tokens, tiles, 1, columns] or [tokens, tiles, S V, period]; table: float32 [2^L, V]; sums: float32
    [S, V, tokens, 16]. The last axes contiguous, all of sums.
    """
    made = _plan(plan)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        lanes = _Lanes(builder)
        views = [_View(context, builder, *pair) for pair in zip(signature.args[1:], args[1:], strict=True)]
        words, before, x, table, sums = views
        values = _Values(lanes, made, table.address)
        for first in range(0, made.steps, made.together):
            totals = _Totals(lanes, made, sums.address, first)
            with cgutils.for_range(builder, words.shape[0]) as loop:
                word, earlier = (lanes.load(view.at(loop.index), _WORDS) for view in (words, before))
                factors = _Factors(lanes, made, [x.at(t, loop.index) for t in range(made.tokens)], x.strides[2])
                for step in range(first, first + made.together):
                    for v, value in enumerate(values.of(lanes.state(made, earlier, word, step))):
                        for t, factor in enumerate(factors.of(step * made.dimension + v)):
                            totals.add((step, v, t), value, factor)
            totals.store()
        return context.get_dummy_value()

    return types.none(plan, words, before, x, table, sums), codegen


class _Totals:
    """The sums of some steps, by (step, v, token), in registers."""

    def __init__(self, lanes: _Lanes, plan: Plan, sums: Any, first: int):
        self.lanes, self.held = lanes, {}
        sizes = range(first, first + plan.together), range(plan.dimension), range(plan.tokens)
        for step, v, t in product(*sizes):
            address = _offset(lanes.builder, sums, 4 * LANES * ((step * plan.dimension + v) * plan.tokens + t))
            held = cgutils.alloca_once_value(lanes.builder, lanes.load(address, _FLOATS))  # type: ignore[no-untyped-call]
            self.held[step, v, t] = address, held

    def add(self, place: tuple[int, int, int], value: Any, factor: Any) -> None:
        held = self.held[place][1]
        total = self.lanes.call("llvm.fmuladd.v16f32", _FLOATS, value, factor, self.lanes.builder.load(held))
        self.lanes.builder.store(total, held)

    def store(self) -> None:
        for address, held in self.held.values():
            self.lanes.store(self.lanes.builder.load(held), address)


class _Factors:
    """The activations of a tile's weights on 16 lanes. addresses: for each token; stride: from a step to the next."""

    def __init__(self, lanes: _Lanes, plan: Plan, addresses: list[Any], stride: Any):
        self.lanes, self.plan, self.addresses, self.stride = lanes, plan, addresses, stride
        order = [lane * plan.columns // LANES for lane in range(LANES)]
        self.shared = [] if plan.period else [self._loaded(address, plan.columns, order) for address in addresses]

    def of(self, weight: int) -> list[Any]:
        """For each token, those of weight `weight` of each lane's word."""
        if not self.plan.period:
            return self.shared
        order = [lane % self.plan.period for lane in range(LANES)]
        places = [_offset(self.lanes.builder, address, weight, self.stride) for address in self.addresses]
        return [self._loaded(place, self.plan.period, order) for place in places]

    def _loaded(self, address: Any, count: int, order: list[int]) -> Any:
        few = self.lanes.load(address, ir.VectorType(_F32, count))
        return self.lanes.shuffle(few, few, order)


@intrinsic(prefer_literal=True)
def emit(typingctx, plan, words, before, table, values):  # type: ignore[no-untyped-def]
    """values[16 (step V + v) + lane] = value of the step's state; words, before: uint32 [16]; table as above."""
    made = _plan(plan)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        lanes = _Lanes(builder)
        views = [_View(context, builder, *pair) for pair in zip(signature.args[1:], args[1:], strict=True)]
        word, earlier = (lanes.load(view.address, _WORDS) for view in views[:2])
        looked_up = _Values(lanes, made, views[2].address)
        for step in range(made.steps):
            for v, value in enumerate(looked_up.of(lanes.state(made, earlier, word, step))):
                lanes.store(value, _offset(builder, views[3].address, 4 * LANES * (step * made.dimension + v)))
        return context.get_dummy_value()

    return types.none(plan, words, before, table, values), codegen
