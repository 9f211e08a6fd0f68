"""Bit streams read eight integers at a time against the packer's own reader, to the last byte of what is stored."""

import numba
import numpy as np
import pytest
import torch

from lowbit.core.fields import Bits
from lowbit.kernels.bit_streams import read_integers, spread, spread_by_halves, unpack_rows
from lowbit.packing import pack


@numba.njit
def by_this_processor(word, bits):
    return spread(word, bits)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 8, 9, 63, 65, 200])
def test_rows_are_unpacked_as_they_were_packed(bits, count):
    values = torch.randint(2**bits, (3, count), generator=torch.Generator().manual_seed(bits))
    packed = pack(values, Bits((3, count), bits)).view(3, -1)
    assert torch.equal(unpack_rows(packed, bits, count), values.to(torch.uint8))


@pytest.mark.parametrize("bits", [1, 5, 7, 9, 12, 16, 31, 32])
@pytest.mark.parametrize("count", [1, 7, 50])
def test_wide_integers_are_read_as_they_were_packed(bits, count):
    values = torch.randint(2**bits, (1, count), generator=torch.Generator().manual_seed(bits))
    read = np.empty(count, np.uint32)
    read_integers(pack(values, Bits((1, count), bits)).numpy(), np.uint64(0), np.uint64(bits), read)
    assert np.array_equal(read, values[0].numpy())


def test_every_processor_spreads_alike():
    anywhere = numba.njit(spread_by_halves)
    for bits in range(1, 9):
        word, size = np.uint64(0xFEDCBA9876543210), np.uint64(bits)
        expected = [0xFEDCBA9876543210 >> bits * i & 2**bits - 1 for i in range(8)]
        for spreading in (anywhere, by_this_processor):
            assert int(spreading(word, size)).to_bytes(8, "little") == bytes(expected)
