"""Multiplying activations by a layer's values while the layer stays packed.

    y = x W'^T,    W' = the decoded codes, [N, K] in the transform's coordinates

`product` and `decode_rows` dispatch on the type of the code. What they do for a code that registers nothing is right
for all: decode a slab of rows, multiply, forget it. A code with a faster way registers it in a file of its own.
A slab of n rows is itself a layer [n, K], so what of each stored field belongs to it follows from comparing the fields
of the two shapes: an axis 0 that grows with the rows is cut in proportion, one that does not is shared.
"""

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import singledispatch
from importlib.util import find_spec

import torch
from torch import Tensor

from lowbit.core.fields import Bits
from lowbit.core.parts import Code
from lowbit.core.stored import codes_from_fields
from lowbit.kernels.bit_streams import unpack_reference, unpack_rows
from lowbit.packing import unpack

_HAS_TRITON = find_spec("triton") is not None

SLAB_BYTES = 4 << 20
"""Decoded values held at a time."""


@dataclass(frozen=True, eq=False)
class StoredCodes:
    """The stored tensors of a code for a layer [N, K], by field name ("codes" and the side information)."""

    shape: tuple[int, int]
    tensors: Mapping[str, Tensor]


@singledispatch
def product(code: Code, stored: StoredCodes, x: Tensor) -> Tensor:
    """x [T, K], floating point, times the transposed values: [T, N] in x's type."""
    return slab_product(code, stored, x)


@singledispatch
def decode_rows(code: Code, stored: StoredCodes, start: int, stop: int) -> Tensor:
    """The values of rows start..stop-1 (whole tiles), float32 [stop - start, K], on the device of the codes."""
    device = stored.tensors["codes"].device
    here = StoredCodes(stored.shape, {name: tensor.cpu() for name, tensor in stored.tensors.items()})
    values = fields_of_rows(code, here, start, stop)
    codes = codes_from_fields(code, values, (stop - start, stored.shape[1]))
    return code.decode(codes, values, torch.arange(stored.shape[1])).to(device)


def fields_of_rows(
    code: Code, stored: StoredCodes, start: int, stop: int, leave: Container[str] = ()
) -> dict[str, Tensor]:
    """The fields of rows start..stop-1 (whole tiles) as those of a layer, unpacked where they are; without `leave`."""
    fields, part = code.fields(stored.shape), code.fields((stop - start, stored.shape[1]))
    values = {}
    for name, field in fields.items():
        if name in leave:
            continue
        length = field.shape[0]
        at = slice(start * length // stored.shape[0], stop * length // stored.shape[0])
        at = slice(0, length) if field.shape == part[name].shape else at
        if isinstance(field, Bits):
            values[name] = _unpacked(stored.tensors[name], field, at).view(part[name].shape)
        else:
            values[name] = stored.tensors[name][at]
    return values


def _unpacked(packed: Tensor, field: Bits, at: slice) -> Tensor:
    """The integers at places `at` of the first axis."""
    if len(field.shape) == 1:
        return _rows(packed, field, slice(0, 1))[0, at]
    inner = math.prod(field.shape[1:-1])
    return _rows(packed, field, slice(at.start * inner, at.stop * inner))


def _rows(packed: Tensor, field: Bits, rows: slice) -> Tensor:
    """Rows of integers, [R, field.shape[-1]]: uint8 on the CPU where they fit, and int32."""
    if field.bits > 8:
        return unpack(packed.cpu(), field, rows).view(-1, field.shape[-1]).to(packed.device)
    streams = packed.view(-1, field.row_nbytes)[rows]
    if not packed.is_cpu:
        return unpack_reference(streams, field.bits, field.shape[-1])
    return unpack_rows(streams, field.bits, field.shape[-1])


def by_kernel(x: Tensor, most: int) -> bool:
    """Whether x [T, K] goes through a kernel of the CPU that pays for up to so many tokens."""
    return len(x) <= most and x.is_cpu and not x.requires_grad


def slab_product(code: Code, stored: StoredCodes, x: Tensor) -> Tensor:
    """`product` by decoding SLAB_BYTES of values at a time; by Triton's kernels on a GPU, for codes that have one."""
    if x.is_cuda and _HAS_TRITON:
        from lowbit.runtime.gpu import product_on_gpu  # imports Triton

        y = product_on_gpu(code, stored, x)
        if y is not None:
            return y
    out = x.new_empty(len(x), stored.shape[0])
    for start, stop in slabs(code, stored.shape):
        out[:, start:stop] = x @ decode_rows(code, stored, start, stop).to(x.dtype).T
    return out


def slabs(code: Code, shape: tuple[int, int], size: int | None = None) -> Iterator[tuple[int, int]]:
    """Rows start..stop-1 of a layer [N, K], whole tiles, whose values take at most `size` bytes, SLAB_BYTES for None,
    where a tile's height allows."""
    n, k = shape
    step = max(1, (size or SLAB_BYTES) // (4 * k * code.tile[0])) * code.tile[0]
    return ((start, min(start + step, n)) for start in range(0, n, step))
