"""docs/format.md read by an independent reader: plain Python on bytes, sharing no code with lowbit."""

import itertools

import numpy as np
import pytest
import torch

from lowbit.codes import E8P, BitshiftTrellis, TailBiting
from lowbit.formats.checkpoint import layout
from lowbit.runtime.product import StoredCodes, decode_rows


def read_trellis(stream, scale, shape, tile, bits, length, closed):
    (n, k), (rows, columns) = shape, tile
    weights, count = np.zeros((-(-n // rows) * rows, k), np.float32), rows * columns
    size = -(-count * bits // 8)
    for number in range(len(stream) // size):
        whole = int.from_bytes(bytes(stream[number * size : (number + 1) * size]), "little")
        codes = [whole >> bits * t & 2**bits - 1 for t in range(count)]
        for t in range(count):
            state = 0
            for back in range(-(-length // bits)):
                state |= (codes[t - back] if closed or t >= back else 0) << bits * back
            hashed = (0x83DCD12D * (state & 2**length - 1)) % 2**32
            top, left = number // (k // columns) * rows, number % (k // columns) * columns
            weights[top + t % rows, left + t // rows] = np.float32(
                (sum(hashed.to_bytes(4, "little")) - 510) / 147.800537
            )
    return scale.astype(np.float32) * weights[:n]


def read_e8p(stream, scale, shape):
    low = [v for v in itertools.product((0.5, 1.5, 2.5), repeat=8) if sum(a * a for a in v) <= 10]
    high = [[0.5 if i in at else 1.5 for i in range(8)] for at in itertools.combinations(range(8), 3)][:29]
    patterns = sorted(map(tuple, low + high), key=lambda v: (sum(v) % 2, sum(a * a for a in v), v))
    weights = np.zeros((len(stream) // 2, 8), np.float32)
    for group, (p, s) in enumerate(stream.reshape(-1, 2).tolist()):
        word = [-a if s >> i & 1 else a for i, a in enumerate(patterns[p][:7])]
        word.append(patterns[p][7] if (sum(word) + patterns[p][7]) % 2 == 0 else -patterns[p][7])
        weights[group] = np.array(word) + (-0.25 if s >> 7 else 0.25)
    return scale * weights.reshape(shape)


def stored(code, shape):
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, field in code.fields(shape).items():
        dtype, size = layout(field)
        made = torch.rand(size, generator=generator) + 0.5
        tensors[name] = (made * 128).to(dtype) if dtype == torch.uint8 else made.to(dtype)
    return StoredCodes(shape, tensors)


@pytest.mark.parametrize(
    ("bits", "tile", "shape"), [(2, (32, 1), (64, 3)), (4, (8, 4), (13, 8)), (3, (16, 2), (20, 4))]
)
@pytest.mark.parametrize("closed", [True, False])
def test_trellis_codes_are_what_the_format_says(bits, tile, shape, closed):
    code = BitshiftTrellis(12, bits, tile=tile)
    layer = stored(code, shape)
    stream, scale = layer.tensors["codes"].numpy(), layer.tensors["scale"].numpy()
    weights = read_trellis(stream, scale, shape, tile, bits, 12, closed)
    decoded = decode_rows(TailBiting(code) if closed else code, layer, 0, shape[0])
    assert np.array_equal(decoded.numpy(), weights)


def test_e8p_codes_are_what_the_format_says():
    layer = stored(E8P(), (6, 40))
    weights = read_e8p(layer.tensors["codes"].numpy(), layer.tensors["scale"].numpy(), (6, 40))
    assert np.array_equal(decode_rows(E8P(), layer, 0, 6).numpy(), weights)
