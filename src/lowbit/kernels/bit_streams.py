"""Integers of few bits out of packed rows, eight at a time.

Eight integers of b bits are b bytes: one load gives them all, and moving them apart to a byte each is one instruction
where the processor deposits bits (BMI2), elsewhere three rounds that halve a group of integers:

    word = word & low | (word >> c b & low) << 8 c,    c = 4, 2, 1,  low the first c of every 2 c integers

Cost: 3 instructions for eight integers, or 16, whatever their width. The oracle is `lowbit.packing.unpack`.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from torch import Tensor

from lowbit.kernels.processor import has_fast_deposit

_I64 = ir.IntType(64)
_BYTES = 8
_HALVES, _QUARTERS, _EIGHTHS = 0x0000000100000001, 0x0001000100010001, 0x0101010101010101


def unpack_rows(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` integers of each row, uint8 [R, count], of rows packed at 1 to 8 bits, uint8 [R, bytes]."""
    held = np.empty((len(packed), -(-count // _BYTES)), np.uint64)
    _unpack_rows(packed.contiguous().view(-1).numpy(), packed.shape[1], np.uint64(bits), held)
    return torch.from_numpy(held.view(np.uint8))[:, :count].contiguous()


def unpack_reference(packed: Tensor, bits: int, count: int) -> Tensor:
    """The same as int32, on any device."""
    at = torch.arange(count, device=packed.device) * bits
    low = packed[:, at // 8].int()
    # Integers that end in their first byte read it twice; the mask drops what is not theirs.
    high = packed[:, (at // 8 + 1).clamp_max(packed.shape[1] - 1)].int()
    return (low | high << 8) >> (at % 8) & (2**bits - 1)


@intrinsic
def word_at(context, stream, at):  # type: ignore[no-untyped-def]
    """The eight bytes of a contiguous uint8 array from place `at` on, lowest first, as uint64; not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.gep(data, [arguments[1]])
        return builder.load(builder.bitcast(address, _I64.as_pointer()), align=1)

    return types.uint64(stream, types.uint64), generate


@intrinsic
def put_word(context, stream, at, word):  # type: ignore[no-untyped-def]
    """Write a uint64 as the eight bytes of a contiguous uint8 array from place `at` on; not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.gep(data, [arguments[1]])
        builder.store(arguments[2], builder.bitcast(address, _I64.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(stream, types.uint64, types.uint64), generate


@intrinsic
def spread(context, word, bits):  # type: ignore[no-untyped-def]
    """The eight integers of `bits` bits (uint64, 1 to 8) at the bottom of a word as its bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        by = _spread_by_deposit if has_fast_deposit() else spread_by_halves
        return context.compile_internal(builder, by, signature, arguments)

    return types.uint64(types.uint64, types.uint64), generate


def spread_by_halves(word, bits):  # type: ignore[no-untyped-def]
    """`spread` on any processor: four integers stay, four move up, then two of each four, then one of each two."""
    U = np.uint64
    low = (U(1) << U(4) * bits) - U(1)
    word = word & low | (word >> U(4) * bits & low) << U(32)
    low = ((U(1) << U(2) * bits) - U(1)) * U(_HALVES)
    word = word & low | (word >> U(2) * bits & low) << U(16)
    low = ((U(1) << bits) - U(1)) * U(_QUARTERS)
    return word & low | (word >> bits & low) << U(8)


def _spread_by_deposit(word, bits):  # type: ignore[no-untyped-def]
    mask = ((np.uint64(1) << bits) - np.uint64(1)) * np.uint64(_EIGHTHS)
    return _deposit(word, mask)  # type: ignore[call-arg]


@intrinsic
def _deposit(context, word, mask):  # type: ignore[no-untyped-def]
    """The lowest bits of a word at the places of the mask's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64, _I64])
        return builder.call(get_or_insert_function(builder.module, kind, "llvm.x86.bmi.pdep.64"), arguments)  # type: ignore[no-untyped-call]

    return types.uint64(types.uint64, types.uint64), generate


@numba.njit(nogil=True, cache=True)
def set_stream(stream, start, bits, held, words):  # type: ignore[no-untyped-def]
    """held = integers: eight of them a word, one a byte, of a stream from byte `start` of uint8 [bytes] on.

    start, bits, words: uint64. A last word that is not full may get what follows in the stream.
    """
    within = _is_within(stream, start, bits, words)
    for i in range(words):
        held[i] = spread(_eight_bytes(stream, start + i * bits, within), bits)  # type: ignore[call-arg]


@numba.njit(nogil=True, cache=True)
def add_stream(stream, start, bits, shift, held, words):  # type: ignore[no-untyped-def]
    """held |= the integers of another stream << shift, uint64."""
    within = _is_within(stream, start, bits, words)
    for i in range(words):
        held[i] |= spread(_eight_bytes(stream, start + i * bits, within), bits) << shift  # type: ignore[call-arg]


@numba.njit(nogil=True, cache=True)
def read_integers(stream, start, bits, values):  # type: ignore[no-untyped-def]
    """The integers of 1 to 32 bits of a stream from byte `start` on into values, uint32; start, bits: uint64."""
    U = np.uint64
    count, mask = U(len(values)), (U(1) << bits) - U(1)
    within = _is_within(stream, start, U(1), (count * bits >> U(3)) + U(1))
    for i in range(count):
        at = i * bits
        values[i] = _eight_bytes(stream, start + (at >> U(3)), within) >> (at & U(7)) & mask


@numba.njit(nogil=True, cache=True)
def _is_within(stream, start, bits, words):  # type: ignore[no-untyped-def]
    """Whether eight bytes may be read wherever one of so many words begins."""
    return start + (words - np.uint64(1)) * bits + np.uint64(_BYTES) <= np.uint64(len(stream))


@numba.njit(nogil=True, cache=True)
def _eight_bytes(stream, at, within):  # type: ignore[no-untyped-def]
    """`word_at`, zeros after the end of the stream."""
    if within:
        return word_at(stream, at)  # type: ignore[call-arg]
    word = np.uint64(0)
    for byte in range(at, min(at + np.uint64(_BYTES), np.uint64(len(stream)))):
        word |= np.uint64(stream[byte]) << (byte - at) * np.uint64(8)
    return word


@numba.njit(nogil=True, cache=True)
def _unpack_rows(stream, row, bits, held):  # type: ignore[no-untyped-def]
    for r in range(len(held)):
        set_stream(stream, np.uint64(r * row), bits, held[r], np.uint64(held.shape[1]))
