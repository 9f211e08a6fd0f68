"""The look-up of vectors against that of single codes; groups, rows and blocks that end anywhere against indexing."""

import numba
import numpy as np
import pytest
import torch

from lowbit.core.fields import Bits
from lowbit.kernels import processor
from lowbit.kernels.lookup_lanes import Span, look_up, look_up_one_by_one
from lowbit.kernels.lookup_product import PackedLookup, levels, plane_codes
from lowbit.packing import pack


@numba.njit
def by_vectors(size, span, sets, numbers, codes, values):
    numba.literally(size)
    look_up(size, span, sets, numbers, codes, values)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("terms", [0, 1, 3])
def test_vectors_are_looked_up_as_single_codes_are(size, terms):
    rng = np.random.default_rng(size)
    sets, numbers = rng.standard_normal(3 * size + 3).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    numbers[5:7] = -3, size / 2  # of the affine function, the ends
    codes, span = rng.integers(0, size, 200).astype(np.uint8), Span(3, 2, terms, 30, 93)
    values, single = np.full(200, np.nan, np.float32), np.full(200, np.nan, np.float32)
    by_vectors(size, span, sets, numbers, codes, values)
    numba.njit(look_up_one_by_one)(size, span, sets, numbers, codes, single)
    if terms:
        table = sum(numbers[2 + i] * sets[3 + i * size :][:size] for i in range(terms))
    else:
        table = numbers[2] * (numbers[3] * (np.arange(size, dtype=np.float32) - numbers[4]).clip(-3, size / 2))
    assert np.array_equal(values[30:93], single[30:93])
    np.testing.assert_array_equal(single[30:93], table[codes[30:93]].astype(np.float32))
    assert np.isnan(values[:30]).all()
    assert np.isnan(values[93 + 15 :]).all()


def layer(bits, shape, group, terms=1, blocks=None):
    """Random codes of a layer whose groups have sets and numbers of their own, and its values."""
    (n, k), generator = shape, torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, shape, generator=generator)
    sets = torch.randn(n, k // group, terms, 2**bits, generator=generator)
    numbers = torch.randn(n, k // group, terms, generator=generator)
    packed = pack(codes, Bits(shape, bits)).view(n, 1, -1)
    factors = None if blocks is None else torch.rand(n, k // blocks, generator=generator)
    table = sum(sets[:, :, i] * numbers[:, :, i, None] for i in range(terms))
    values = table.gather(2, codes.view(n, -1, group)).view(shape)
    values = values if factors is None else values * factors.repeat_interleave(blocks, 1)
    return PackedLookup(plane_codes(packed, bits), levels(sets, numbers, group), k, factors), values


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize(("shape", "group", "blocks"), [((3, 64), 32, None), ((2, 75), 25, 15), ((5, 7), 7, 1)])
def test_values_and_products_are_those_of_the_tables(bits, terms, shape, group, blocks):
    packed, values = layer(bits, shape, group, terms, blocks)
    assert torch.equal(packed.decode(), values)
    x = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed.product(x), x @ values.T, rtol=1e-4, atol=1e-4)


def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(processor, "_WEIGHTS_OF_A_THREAD", 1)
    packed, _ = layer(3, (67, 96), 32)
    x, answers = torch.randn(2, 96), []
    for threads in {1, numba.config.NUMBA_NUM_THREADS}:
        numba.set_num_threads(threads)
        answers.append(packed.product(x))
    numba.set_num_threads(1)
    assert all(torch.equal(answers[0], answer) for answer in answers)
