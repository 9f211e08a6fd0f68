"""Dense packing against a bit packer in plain Python, and the legality of streams."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.core.errors import BadRequest
from lowbit.core.fields import Bits
from lowbit.packing import pack, unpack
from lowbit.packing.dense import is_legal


def packed_by_hand(rows: list[list[int]], bits: int) -> list[int]:
    """Row by row one big little-endian integer, filled up to whole bytes."""
    stream = []
    for row in rows:
        number = sum(value << (bits * i) for i, value in enumerate(row))
        stream += number.to_bytes(math.ceil(len(row) * bits / 8), "little")
    return stream


@st.composite
def fields(draw):
    bits = draw(st.integers(1, 32))
    shape = (*draw(st.lists(st.integers(1, 5), min_size=0, max_size=2)), draw(st.integers(1, 40)))
    value = st.one_of(st.integers(0, 2**bits - 1), st.sampled_from([0, 2**bits - 1]))
    values = draw(st.lists(value, min_size=math.prod(shape), max_size=math.prod(shape)))
    return Bits(shape, bits), torch.tensor(values).view(shape)


@given(fields())
def test_packing_equals_packing_by_hand(given_field):
    field, values = given_field
    packed = pack(values, field)
    assert packed.tolist() == packed_by_hand(values.view(-1, field.shape[-1]).tolist(), field.bits)
    assert packed.numel() == field.nbytes
    assert is_legal(packed, field)
    opened = unpack(packed, field)
    assert opened.shape == field.shape
    assert torch.equal(opened.long(), values)


@given(fields(), st.data())
def test_any_rows_can_be_unpacked_alone(given_field, data):
    field, values = given_field
    rows = values.reshape(-1, field.shape[-1])
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    assert torch.equal(unpack(pack(values, field), field, slice(start, stop)).long(), rows[start:stop])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64])
def test_integers_of_any_type_pack_alike(dtype):
    field = Bits((2, 5), 3)
    values = torch.tensor([[0, 1, 2, 3, 4], [7, 6, 5, 4, 3]])
    assert torch.equal(pack(values.to(dtype), field), pack(values, field))


@pytest.mark.parametrize("wrong", [[0, 8, 1], [-1, 0, 1]])
def test_values_that_do_not_fit_are_refused(wrong):
    with pytest.raises(BadRequest, match="do not fit in 3 bits"):
        pack(torch.tensor(wrong), Bits((3,), 3))


def test_streams_of_another_length_or_type_are_illegal():
    field = Bits((4, 3), 3)
    packed = pack(torch.full((4, 3), 7), field)
    assert is_legal(packed, field)
    assert not is_legal(packed[:-1], field)
    assert not is_legal(packed.to(torch.int8), field)


def test_bits_that_fill_up_a_row_must_be_zero():
    field = Bits((4, 3), 3)
    packed = pack(torch.full((4, 3), 7), field)
    packed[2 * 3 + 1] |= 0x80
    assert not is_legal(packed, field)


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(BadRequest, match="1 to 32"):
        Bits((4,), bits)
