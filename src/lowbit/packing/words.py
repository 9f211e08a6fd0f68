"""The same bit stream in 32-bit words, as GPTQ and compressed-tensors store it.

Integer i of a row is bits [i b, (i + 1) b) of the row, lowest first; a row takes ceil(n b / 32) words, spare bits zero.
"""

import torch
from torch import Tensor

from lowbit.core.fields import Bits
from lowbit.packing.dense import pack, unpack


def pack_words(values: Tensor, bits: int) -> Tensor:
    """Unsigned integers [R, n] below 2^bits as int32 [R, ceil(n bits / 32)]."""
    rows, count = values.shape
    words = -(-count * bits // 32)
    field = Bits((rows, -(-count // 32) * 32), bits)  # 32 integers are whole words
    padded = torch.nn.functional.pad(values, (0, field.shape[1] - count))
    return pack(padded, field).view(torch.int32).view(rows, -1)[:, :words].contiguous()


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` integers, at most 8 bits each, of every row of int32 [R, W]: uint8 [R, count]."""
    field = Bits((len(words), count), bits)
    stored = words.contiguous().view(torch.uint8).view(len(words), -1)[:, : field.row_nbytes]
    return unpack(stored.contiguous().view(-1), field)
