"""The words against the definition: integer i is bits [i b, (i + 1) b) of a row read as one large number."""

import pytest
import torch

from lowbit.packing import pack_words, unpack_words


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 70])
def test_words_are_one_bit_stream(bits, count):
    values = torch.randint(0, 1 << bits, (3, count), generator=torch.Generator().manual_seed(count)).to(torch.uint8)
    words = pack_words(values, bits)
    assert (words.dtype, words.shape) == (torch.int32, (3, -(-count * bits // 32)))
    for row, packed in zip(values.tolist(), words.tolist(), strict=True):
        stream = sum(value << bits * place for place, value in enumerate(row))
        assert packed == [
            (stream >> 32 * i & 0xFFFFFFFF) - (1 << 32) * (stream >> 32 * i + 31 & 1) for i in range(len(packed))
        ]
    assert torch.equal(unpack_words(words, bits, count), values)
