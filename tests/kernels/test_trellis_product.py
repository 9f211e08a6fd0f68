"""The packed trellis kernels against their references, where words and vectors fit a tile and where they do not."""

import numba
import pytest
import torch

from lowbit.codes.trellis import fragment
from lowbit.codes.trellis_values import value_table
from lowbit.kernels import processor
from lowbit.kernels.state_values import FROM_TABLE
from lowbit.kernels.trellis_lanes import DOT_SUM, HALF_SUM, PORTABLE_SUM, TABLE
from lowbit.kernels.trellis_product import (
    PackedTrellis,
    decode_reference,
    decode_rows,
    has_dot_product,
    product,
    product_reference,
)
from lowbit.runtime.trellis import COMPUTED

# N, K, tile, b, L, values, V. A kernel is compiled for each row, so there are no more than differ in kind.
CASES = {
    "strips, 2 bits": (512, 40, (256, 1), 2, 16, "mul1", 1),
    "pairs of columns, 3 bits": (256, 20, (128, 2), 3, 14, "1mad", 1),
    "squares, 4 bits": (32, 64, (16, 16), 4, 16, "strata", 1),
    "low tiles, idle lanes and steps": (100, 34, (58, 2), 2, 12, "gaussian", 1),
    "words that are no bytes": (24, 16, (8, 8), 5, 10, "gaussian", 1),
    "sequences shorter than a word, two weights a step": (10, 12, (4, 3), 3, 6, "gaussian", 2),
    "fragments, 2 bits": (32, 48, (16, 16), 2, 16, "exl3-mul1", 1),
    "fragments, mcg": (16, 32, (16, 16), 3, 16, "exl3-mcg", 1),
    "fragments, words that are no bytes": (16, 32, (16, 16), 5, 16, "exl3-3inst", 1),
    "fragments, halves of bits": (32, 16, (16, 16), 3, 9, "gaussian", 2),
}


def packed(case, closed=True, row_scales=True):
    n, k, tile, bits, length, values, dimension = CASES[case]
    generator = torch.Generator().manual_seed(bits)
    stream_bits = tile[0] * tile[1] // dimension * bits
    shape = (-(-n // tile[0]), k // tile[1], -(-stream_bits // 8))
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    codes[..., -1] >>= -stream_bits % 8
    scale = (torch.rand(n if row_scales else 1, generator=generator) + 0.5).half()
    table = value_table(values, length, dimension, bits)
    order = tuple(fragment().tolist()) if "fragments" in case else None
    return PackedTrellis(codes, scale, n, tile, bits, closed, table, COMPUTED.get(values, FROM_TABLE), order)


def kinds(layer):
    if layer.computed.kind == "half sum":
        return [HALF_SUM, TABLE]
    sums = [PORTABLE_SUM, *([DOT_SUM] if has_dot_product() else [])]
    return sums if layer.computed.kind == "byte sum" else [TABLE]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("closed", [True, False])
def test_decoding_gives_the_values_bit_for_bit(case, closed):
    layer = packed(case, closed, row_scales=closed)
    n, height = layer.rows, layer.tile[0]
    assert torch.equal(decode_rows(layer, 0, n), decode_reference(layer, 0, n))
    assert torch.equal(decode_rows(layer, height, n), decode_reference(layer, height, n))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if "3 bits" in case else ()) for case in CASES]
)
@pytest.mark.parametrize("closed", [True, False])
def test_the_product_is_that_of_the_decoded_values(case, closed):
    """To the accuracy of a float32 sum: nothing is rounded on the way."""
    layer = packed(case, closed, row_scales=closed)
    dense = decode_reference(layer, 0, layer.rows).double()
    for tokens in (1, 6):
        x = torch.randn(tokens, dense.shape[1], generator=torch.Generator().manual_seed(tokens))
        exact = x.double() @ dense.T
        for kind in kinds(layer):
            assert (product(layer, x, kind) - exact).abs().max() < 2e-6 * exact.abs().max()
        assert (product_reference(layer, x) - exact).abs().max() < 2e-6 * exact.abs().max()


def test_tasks_and_runs_of_tiles_add_up(monkeypatch):
    """More tiles in a row than are spread at a time, and than one task has."""
    layer = packed("strips, 2 bits")
    wide = PackedTrellis(
        layer.codes[:1].repeat(1, 30, 1), layer.scale[:256], 256, layer.tile, 2, True, layer.values, layer.computed
    )
    x = torch.randn(1, 1200, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ decode_reference(wide, 0, 256).double().T
    monkeypatch.setattr(processor, "_WEIGHTS_OF_A_THREAD", 1)
    answers = []
    for threads in sorted({1, numba.config.NUMBA_NUM_THREADS}):
        numba.set_num_threads(threads)
        answers.append(product(wide, x))
    numba.set_num_threads(1)
    assert (answers[0] - exact).abs().max() < 2e-6 * exact.abs().max()
    assert all(torch.equal(answers[0], answer) for answer in answers)
