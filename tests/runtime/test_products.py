"""Products straight from the codes against decoding first, through the dispatch that a loaded layer uses."""

import pytest
import torch

from lowbit.codes import (
    E8P,
    BinaryCoding,
    BitshiftTrellis,
    BlockScaled,
    ClusteredLevels,
    Digits,
    FinerColumns,
    LaidOut,
    Lookup,
    MidriseGrid,
    Padded,
    Planes,
    ScaledLevels,
    Scales,
    SharedLevels,
    SuperBlocks,
    TailBiting,
    VectorCodebook,
)
from lowbit.core.errors import BadRequest
from lowbit.core.fields import Bits
from lowbit.formats.checkpoint import layout
from lowbit.packing import pack
from lowbit.runtime.product import StoredCodes, decode_rows, product

CODES = {
    "e8p, 2 bits": (E8P(), (19, 40)),
    "e8p, 3 bits": (E8P(3), (19, 40)),
    "e8p, 4 bits, padded": (Padded(E8P(4)), (19, 37)),
    "trellis, padded": (Padded(TailBiting(BitshiftTrellis(12, 2, tile=(16, 16)))), (40, 35)),
    "trellis of fragments without a scale": (
        TailBiting(BitshiftTrellis(12, 3, 1, (16, 16), "exl3-mul1", "unit", order="fragment")),
        (48, 32),
    ),
    "trellis without a scale": (TailBiting(BitshiftTrellis(12, 2, 1, (16, 16), scales="unit")), (32, 48)),
    "trellis whose steps lie in two columns": (BitshiftTrellis(8, 2, 2, (3, 4), "gaussian"), (9, 12)),
    "levels of groups, twice scaled": (Lookup(ScaledLevels("nf4", Scales("uint8", "row")), 12), (9, 36)),
    "levels of rows, 3 bits": (Lookup(ClusteredLevels(3)), (11, 29)),
    "levels of the layer, 8 bits": (Lookup(ScaledLevels("nf8"), "tensor"), (7, 21)),
    "tables that rows share, 5 bits": (Lookup(SharedLevels(5, 4)), (10, 19)),
    "pairs, codebooks in 8 bits": (VectorCodebook(2, 5, 3, group_size=8, dtype="int8"), (6, 24)),
    "vectors of outputs, 12 bits": (VectorCodebook(4, 12, along="outputs"), (8, 19)),
    "vectors of outputs, 8 bits": (VectorCodebook(4, 8, along="outputs", group_size=19), (8, 38)),
    "vectors of outputs, one index for two codebooks": (VectorCodebook(3, 4, 3, along="outputs"), (6, 19)),
    "vectors, 3 bits": (VectorCodebook(2, 3, group_size=8), (6, 24)),
    "vectors, 9 bits": (VectorCodebook(3, 9), (5, 33)),
    "vectors, 6 bits, scales of blocks": (BlockScaled(VectorCodebook(2, 6, group_size=8), 6), (5, 24)),
    "vectors, 10 bits, scales of blocks": (BlockScaled(VectorCodebook(2, 6, 4), 6), (5, 24)),
    "scales of blocks": (BlockScaled(Lookup(ClusteredLevels(2)), 6), (5, 18)),
    "two streams": (LaidOut(Lookup(ScaledLevels("e3m2")), Planes(4, 2)), (5, 19)),
    "digits": (LaidOut(Lookup(ScaledLevels("ternary"), 6), Digits(3)), (5, 18)),
    "super-blocks": (Lookup(SuperBlocks(4, 6, 2), 8), (5, 32)),
    "midrise": (MidriseGrid(3), (5, 19)),
    "sums of planes": (Lookup(BinaryCoding(2), 4), (6, 20)),
}


def random_layer(code, shape):
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, field in code.fields(shape).items():
        dtype, size = layout(field)
        made = torch.rand(size, generator=generator)
        tensors[name] = (made * 256).to(torch.uint8) if dtype == torch.uint8 else (made + 0.5).to(dtype)
    return StoredCodes(shape, tensors)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_decoded_values(name, dtype):
    code, shape = CODES[name]
    layer = random_layer(code, shape)
    dense = decode_rows.dispatch(object)(code, layer, 0, shape[0]).double()
    assert torch.equal(decode_rows(code, layer, 0, shape[0]).double(), dense)
    for tokens in (1, 3, 40):
        x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(tokens)).to(dtype)
        y, exact = product(code, layer, x), x.double() @ dense.T
        assert y.dtype == dtype
        assert (y.double() - exact).abs().max() < max(2e-6, torch.finfo(dtype).eps) * exact.abs().max()


@pytest.mark.parametrize("group_size", ["tensor", 10])
def test_finer_columns_are_added_to_the_usual_ones(group_size):
    code, shape = FinerColumns(VectorCodebook(4, 6, along="outputs", group_size=group_size), 9, 0.1), (8, 20)
    layer, x = random_layer(code, shape), torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    named = dict(layer.tensors)
    named["finer_column"] = pack(torch.tensor([3, 17], dtype=torch.uint8), Bits((2,), 5))
    exact = x @ decode_rows(code, StoredCodes(shape, named), 0, 8).T
    torch.testing.assert_close(product(code, StoredCodes(shape, named), x), exact, rtol=1e-5, atol=1e-5)
    named["finer_column"] = pack(torch.tensor([3, 3], dtype=torch.uint8), Bits((2,), 5))
    with pytest.raises(BadRequest, match="ascending"):
        product(code, StoredCodes(shape, named), x)
