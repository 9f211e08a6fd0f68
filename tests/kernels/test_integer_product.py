"""The packed kernels against their references, on shapes where codes, groups and bytes do not line up."""

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.core.fields import Bits
from lowbit.kernels.integer_product import PackedGrid, decode_reference, decode_rows, product, product_reference
from lowbit.packing import pack, unpack

SHAPES = {
    "groups": (9, 96, 32),
    "odd groups": (5, 420, 140),
    "small groups": (5, 60, 20),
    "row": (7, 172, 172),
    "tensor": (3, 36, None),
}


def packed(n, k, bits, group, symmetric):
    torch.manual_seed(bits)
    rows, groups = (1, 1) if group is None else (n, k // group)
    codes, zero = torch.randint(2**bits, (n, k)), torch.randint(2**bits, (rows * groups,))
    scale = (torch.rand(rows, groups) + 0.1).half()
    zeros = None if symmetric else pack(zero, Bits((rows * groups,), bits))
    grid = PackedGrid(pack(codes, Bits((n, k), bits)).view(n, -1), scale, zeros, bits, k, 2.0 ** (bits - 1))
    z = torch.full(scale.shape, grid.middle) if symmetric else zero.view(scale.shape).float()
    width = k // groups
    values = scale.float().repeat_interleave(width, 1) * (codes - z.repeat_interleave(width, 1))
    return grid, values.expand(n, k)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_decoding_gives_the_values_bit_for_bit(bits, shape, symmetric):
    n, k, group = SHAPES[shape]
    grid, values = packed(n, k, bits, group, symmetric)
    assert torch.equal(decode_reference(grid, 0, n), values)
    assert torch.equal(decode_rows(grid, 0, n), values)
    assert torch.equal(decode_reference(grid, 1, n - 1), values[1 : n - 1])
    assert torch.equal(decode_rows(grid, 1, n - 1), values[1 : n - 1])


# A kernel is compiled for each pair of bits and trips, so not every shape meets every width.
@pytest.mark.parametrize(
    ("bits", "shape"),
    [
        *[(bits, "row") for bits in (1, 4, 5, 6, 7)],
        *[(bits, "groups") for bits in (2, 3, 8)],
        *[(bits, "odd groups") for bits in (3, 5)],
        *[(bits, "small groups") for bits in (3, 4)],
        (4, "tensor"),
    ],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_product_is_that_of_the_decoded_values(bits, shape, symmetric):
    n, k, group = SHAPES[shape]
    grid, values = packed(n, k, bits, group, symmetric)
    x = torch.randn(3, k)
    exact = (x.double() @ values.double().T).float()
    scale = exact.abs().max()
    assert (product_reference(grid, x) - exact).abs().max() < 1e-5 * scale
    assert (product(grid, x) - exact).abs().max() < 1e-5 * scale


def test_the_number_of_threads_does_not_change_a_bit():
    grid, _ = packed(67, 96, 3, 32, False)
    x, answers = torch.randn(2, 96), []
    for threads in {1, numba.config.NUMBA_NUM_THREADS}:
        numba.set_num_threads(threads)
        answers.append(product(grid, x))
    numba.set_num_threads(1)
    assert all(torch.equal(answers[0], answer) for answer in answers)


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 40))
def test_streams_are_read_as_they_are_packed(bits, n, k):
    grid, _ = packed(n, k, bits, 1, True)
    codes = decode_reference(grid, 0, n) / grid.scale.float() + grid.middle
    assert torch.equal(codes.round().to(torch.uint8), unpack(grid.codes.view(-1), Bits((n, k), bits)))
