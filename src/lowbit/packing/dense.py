"""The one bit layout of lowbit's own format.

Row by row (last axis), the integers follow each other without gaps, lowest bit first, in little-endian bytes; each
row is filled up to a whole byte with zero bits. 3 bits are 3 bits: a row of 172 three-bit integers takes 65 bytes.

    integer i of a row = bits [i b, (i + 1) b) of the row, bit t being bit t mod 8 of byte t div 8
"""

import numpy as np
import torch
from torch import Tensor

from lowbit.core.errors import BadRequest
from lowbit.core.fields import Bits

# Integers unpacked at a time, to bound the memory of the bit planes.
_CHUNK = 1 << 22


def pack(values: Tensor, field: Bits) -> Tensor:
    """Unsigned integers, of field.shape's number of elements, as uint8 [field.nbytes].

    Raises BadRequest where a value does not fit in field.bits bits.
    """
    rows = values.reshape(-1, field.shape[-1])
    if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < 1 << field.bits):
        raise BadRequest(f"Values from {int(rows.min())} to {int(rows.max())} do not fit in {field.bits} bits.")
    packed = np.empty((len(rows), field.row_nbytes), dtype=np.uint8)
    shifts = np.arange(field.bits, dtype=np.uint32)
    step = max(1, _CHUNK // max(1, field.shape[-1] * field.bits))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step].numpy().astype(np.uint32)
        planes = ((chunk[:, :, None] >> shifts) & 1).astype(np.uint8)
        packed[start : start + step] = np.packbits(planes.reshape(len(chunk), -1), axis=1, bitorder="little")
    return torch.from_numpy(packed.reshape(-1))


def unpack(packed: Tensor, field: Bits, rows: slice = slice(None)) -> Tensor:
    """The integers of `rows` (of the flattened leading axes): uint8 where they fit, else int32 (int64 for 32 bits).

    packed: uint8 [field.nbytes]. Returns field.shape for all rows, else [rows, field.shape[-1]].
    """
    table = packed.view(-1, field.row_nbytes)[rows].numpy()
    dtype = np.uint8 if field.bits <= 8 else np.int32 if field.bits <= 31 else np.int64
    values = np.empty((len(table), field.shape[-1]), dtype=dtype)
    weights = (1 << np.arange(field.bits, dtype=np.uint32)).astype(dtype)
    step = max(1, _CHUNK // max(1, field.shape[-1] * field.bits))
    for start in range(0, len(table), step):
        bits = np.unpackbits(table[start : start + step], axis=1, bitorder="little", count=field.shape[-1] * field.bits)
        planes = bits.reshape(-1, field.shape[-1], field.bits)
        values[start : start + step] = np.matmul(planes, weights, dtype=dtype)
    result = torch.from_numpy(values)
    return result.view(field.shape) if rows == slice(None) else result


def is_legal(packed: Tensor, field: Bits) -> bool:
    """Whether a stream has the right type and length and only zero bits where rows are filled up."""
    if packed.dtype != torch.uint8 or packed.shape != (field.nbytes,):
        return False
    spare = field.row_nbytes * 8 - field.shape[-1] * field.bits
    last = packed.view(-1, field.row_nbytes)[:, -1] if packed.numel() else packed
    return spare == 0 or bool((last >> (8 - spare) == 0).all())
