"""The GPU's decoding and products, by Triton's interpreter, against each code's own `decode`."""

import pytest
import torch

from lowbit.codes import (
    E8P,
    BitshiftTrellis,
    BlockScaled,
    ClusteredLevels,
    Digits,
    DualGrained,
    IntegerGrid,
    LaidOut,
    Lookup,
    LowRankLevels,
    MidriseGrid,
    Planes,
    ScaledLevels,
    Scales,
    TailBiting,
    VectorCodebook,
)
from lowbit.core.fields import Bits
from lowbit.core.random import stream
from lowbit.core.stored import codes_from_fields
from lowbit.packing import pack
from lowbit.runtime.product import StoredCodes

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not checked (pip install lowbit[gpu])")

from lowbit.kernels.triton import blocks
from lowbit.runtime import gpu


def trellis(L: int, k: float, tile: tuple[int, int], values: str, V: int = 1, scales: str = "row") -> BitshiftTrellis:
    return BitshiftTrellis(L, k, V, tile, values, scales)


def fragments(k: float, values: str) -> BitshiftTrellis:
    return BitshiftTrellis(16, k, 1, (16, 16), values, "unit", order="fragment")


CASES = {
    "strips": (TailBiting(trellis(16, 2, (256, 1), "mul1")), (300, 40)),
    "narrow tiles": (TailBiting(trellis(14, 2, (128, 2), "strata")), (128, 34)),
    "square tiles": (TailBiting(trellis(12, 2, (16, 16), "3inst", scales="tensor")), (48, 64)),
    "tiles of odd height": (TailBiting(trellis(12, 3, (29, 2), "1mad")), (57, 36)),
    "a column shorter than a state": (TailBiting(trellis(12, 1, (4, 8), "mul1")), (20, 32)),
    "one row": (TailBiting(trellis(12, 3, (1, 16), "gaussian")), (5, 32)),
    "pairs": (TailBiting(trellis(16, 2, (16, 16), "hyb", V=2)), (32, 32)),
    "half bits": (TailBiting(trellis(9, 1.5, (16, 16), "gaussian", V=2)), (40, 48)),
    "4 bits": (TailBiting(trellis(16, 4, (16, 16), "mul1")), (32, 32)),
    "5 bits": (TailBiting(trellis(10, 5, (8, 4), "gaussian")), (30, 32)),
    "7 bits": (TailBiting(trellis(18, 7, (8, 2), "mul1")), (30, 32)),
    "no memory": (TailBiting(trellis(8, 8, (4, 4), "gaussian")), (32, 32)),
    "longest state": (TailBiting(trellis(20, 1, (64, 1), "mul1")), (70, 33)),
    "fragments of byte sums": (TailBiting(fragments(2, "exl3-mul1")), (48, 32)),
    "fragments of half sums": (TailBiting(fragments(3, "exl3-mcg")), (32, 48)),
    "open fragments, 8 bits": (fragments(8, "exl3-3inst"), (32, 32)),
    "fragments from a table": (TailBiting(fragments(4, "strata")), (16, 32)),
    "no scale": (TailBiting(trellis(12, 2, (16, 16), "3inst", scales="unit")), (32, 32)),
    "open": (trellis(16, 2, (256, 1), "mul1"), (256, 20)),
    "open, short columns": (trellis(12, 1, (4, 8), "mul1"), (20, 32)),
    **{f"E8P {bits}": (E8P(bits), (70, 72)) for bits in (2, 3, 4)},
    **{f"grid {bits}": (IntegerGrid(bits, 32), (70, 96)) for bits in range(1, 9)},
    "grid, odd columns": (IntegerGrid(4, symmetric=True), (3, 75)),
    "grid, odd groups": (IntegerGrid(3, 25), (65, 75)),
    "grid, one scale": (IntegerGrid(2, "tensor"), (5, 64)),
    "midrise": (MidriseGrid(3), (5, 75)),
    "levels of groups": (Lookup(ScaledLevels("nf4", Scales("uint8", "row")), 12), (66, 72)),
    "levels of a row, 3 bits": (Lookup(ClusteredLevels(3, "none")), (5, 75)),
    "levels of the layer, 8 bits": (Lookup(ScaledLevels("nf8"), "tensor"), (3, 70)),
    "sums of terms": (Lookup(LowRankLevels(2, 2), 8), (5, 72)),
    "clipped steps": (Lookup(DualGrained(4), 16), (5, 80)),
    "6 bits in two streams": (LaidOut(Lookup(ScaledLevels("e3m2")), Planes(4, 2)), (5, 70)),
    "digits": (LaidOut(Lookup(ScaledLevels("ternary"), 12), Digits(3)), (5, 72)),
    "vectors of inputs, two stages": (VectorCodebook(4, 6, 5, group_size=32), (5, 96)),
    "vectors of outputs": (VectorCodebook(8, 9, along="outputs"), (72, 67)),
    "vectors in blocks": (BlockScaled(VectorCodebook(2, 4), 16), (5, 96)),
}


def layer(name: str):
    """Random stored codes, and the values they stand for."""
    code, shape = CASES[name]
    rng, integers, stored = stream(0, "triton", name), {}, {}
    for field, kind in code.fields(shape).items():
        if isinstance(kind, Bits):
            most = 3**5 if "digits" in name and field == "codes" else 1 << kind.bits
            dtype = torch.uint8 if kind.bits <= 8 else torch.int32
            integers[field] = torch.randint(0, most, kind.shape, generator=rng, dtype=dtype)
            stored[field] = pack(integers[field], kind)
        else:
            integers[field] = stored[field] = (torch.rand(kind.shape, generator=rng) + 0.5).to(kind.dtype)
    codes = codes_from_fields(code, integers, shape)
    packed = gpu.packed(code, StoredCodes(shape, stored))
    return packed, code.decode(codes, integers, torch.arange(shape[1])), rng


@pytest.mark.parametrize("name", CASES)
def test_decoding_gives_what_the_code_gives(name: str) -> None:
    packed, values, _ = layer(name)
    torch.testing.assert_close(blocks.dense(packed), values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 5, blocks.MOST_TOKENS])
@pytest.mark.parametrize(
    "name",
    ["strips", "tiles of odd height", "pairs", "E8P 3", "grid 3", "grid, odd columns", "digits", "vectors in blocks"],
)
def test_products_are_those_with_the_values(name: str, tokens: int) -> None:
    packed, values, rng = layer(name)
    x = torch.randn(tokens, values.shape[1], generator=rng)
    torch.testing.assert_close(blocks.product(packed, x), x @ values.T, rtol=1e-4, atol=1e-4)


def test_columns_split_among_programs_are_added_up() -> None:
    code, shape = TailBiting(trellis(10, 2, (16, 2), "mul1")), (20, 32 * 4 * 3 + 6)
    CASES["wide"] = (code, shape)
    packed, values, rng = layer("wide")
    x = torch.randn(2, shape[1], generator=rng)
    torch.testing.assert_close(blocks.product(packed, x), x @ values.T, rtol=1e-4, atol=1e-4)


def test_half_precision_rounds_values_and_nothing_else() -> None:
    """float16 only: the interpreter multiplies the bit patterns of bfloat16 (Triton 3.7.1)."""
    packed, values, rng = layer("strips")
    x = torch.randn(3, values.shape[1], generator=rng).half()
    y, exact = blocks.product(packed, x), x.double() @ values.double().T
    assert y.dtype == torch.float16
    assert float((y - exact).abs().max() / exact.abs().max()) < 2 * torch.finfo(torch.float16).eps


def test_many_tokens_and_gradients_go_through_the_dense_layer() -> None:
    code, shape = CASES["E8P 2"]
    packed, values, rng = layer("E8P 2")
    stored = StoredCodes(shape, {"codes": packed.stored[0], "scale": packed.scale})
    for tokens, learns in ((20, False), (2, True)):
        x = torch.randn(tokens, shape[1], generator=rng).requires_grad_(learns)
        y = gpu.product_on_gpu(code, stored, x)
        torch.testing.assert_close(y, x @ values.T, rtol=1e-4, atol=1e-4)
        assert y.requires_grad == learns


def test_a_code_without_a_kernel_is_left_to_others() -> None:
    code = TailBiting(trellis(9, 1, (16, 3), "gaussian", V=3))
    stored = StoredCodes((16, 3), {"codes": torch.zeros(6, dtype=torch.uint8), "scale": torch.ones(16, 1)})
    assert gpu.product_on_gpu(code, stored, torch.ones(1, 3)) is None
