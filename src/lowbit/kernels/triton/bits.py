"""Device functions on bit streams: integers of any width out of little-endian bytes, and digits in reverse."""

import triton
import triton.language as tl


@triton.jit
def bits_at(stream, start, stop, COUNT: tl.constexpr, SLACK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The COUNT bits from bit `start` on, uint64 in the shape of `start`.

    SLACK: the greatest value of start mod 8, with COUNT + SLACK <= 64. Bytes from bit `stop` on are taken as zero.
    -1 for SLACK: COUNT is 32, start a multiple of it and the stream aligned, so that it is one load.
    """
    if SLACK < 0:
        word = tl.load(stream.to(tl.pointer_type(tl.uint32), bitcast=True) + start // 32).to(tl.uint64)
    else:
        first, word = start // 8, (start * 0).to(tl.uint64)
        for i in tl.static_range((COUNT + SLACK + 7) // 8):
            byte = tl.load(stream + first + i, mask=(first + i) * 8 < stop, other=0)
            word |= byte.to(tl.uint64) << (8 * i)
        word = word >> (start % 8).to(tl.uint64)
        if COUNT < 64:
            word &= (1 << COUNT) - 1
    return word


@triton.jit
def digits_reversed(word, BITS: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The COUNT digits of BITS bits of a uint64, the lowest first in exchange for last; COUNT: a power of two.

    Halves are exchanged, then their halves and so on: five operations for each doubling of COUNT.
    """
    every: tl.constexpr = (1 << (BITS * COUNT)) - 1
    for i in tl.static_range(COUNT.bit_length() - 1):
        low = every // ((1 << (2 * BITS << i)) - 1) * ((1 << (BITS << i)) - 1)
        word = ((word >> (BITS << i)) & low) | ((word & low) << (BITS << i))
    return word
