"""Where scales and codebooks are finer: the numerical checks of FineQuant, and VPTQ's codebook of outlier columns."""

import itertools

import pytest
import torch

from laws.problems import correlated
from laws.statements import solve
from lowbit.codes import AdaptiveBlocks, FinerColumns, IntegerGrid, Lookup, VectorCodebook
from lowbit.codes.adaptive import best_partition
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.problem import LayerProblem
from lowbit.recipes import make_recipe
from lowbit.rounding import Ldlq, Nearest


def gaussian(n=16, k=128, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(weight):
    return LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64))


def w_hat(weight, code):
    return Nearest().round(plain(weight), code).w_hat


def adaptive(share, bits=4, finest=8):
    return Lookup(AdaptiveBlocks(bits, share), finest, "static")


# FineQuant


def test_one_block_is_a_row_and_finest_blocks_are_groups_bit_for_bit():
    weight = gaussian()
    assert torch.equal(w_hat(weight, adaptive(16)), w_hat(weight, IntegerGrid(4, "row", symmetric=True)))
    assert torch.equal(w_hat(weight, adaptive(1)), w_hat(weight, IntegerGrid(4, 8, symmetric=True)))


@pytest.mark.parametrize("blocks", [1, 2, 3, 6, 7])
def test_the_partition_is_the_best_there_is(blocks):
    largest = gaussian(5, 7, seed=blocks).abs() * torch.logspace(0, 1, 7, dtype=torch.float64)

    def cost(starts):
        ends = [*starts[1:], 7]
        parts = [largest[:, a:b].amax(1).square().sum() * (b - a) for a, b in zip(starts, ends, strict=True)]
        return float(sum(parts))

    least = min(cost((0, *cuts)) for cuts in itertools.combinations(range(1, 7), blocks - 1))
    found = best_partition(largest, blocks).nonzero()[:, 0].tolist()
    assert len(found) == blocks
    assert found[0] == 0
    assert cost(found) == pytest.approx(least, rel=1e-12)


def test_scales_go_where_the_range_changes():
    """One loud block in a quiet row gets a block of its own, which its neighbours are spared."""
    weight = gaussian()
    weight[:, 40:48] *= 30
    side = adaptive(5).fit(plain(weight))
    assert side["block_start"].nonzero()[:, 0].tolist()[:3] == [0, 5, 6]
    ours, even = (float((w_hat(weight, code) - weight).square().mean()) for code in (adaptive(4), IntegerGrid(4, 32)))
    assert ours < 0.9 * even


def test_never_worse_than_even_blocks_by_its_own_measure_and_by_the_error_where_ranges_differ():
    for seed in range(4):
        weight = gaussian(seed=seed)
        weight[:, torch.randperm(128, generator=torch.Generator().manual_seed(seed))[:3]] *= 12
        even = IntegerGrid(4, 32, symmetric=True)
        errors = [float((w_hat(weight, code) - weight).square().sum()) for code in (adaptive(4), even)]
        assert errors[0] < errors[1]


def test_finer_blocks_have_smaller_scales():
    """Of nested blocks; as 3.83, 2.83 and 2.60 standard deviations on average in 4096, 128 and 64 Gaussian weights."""
    weight = gaussian(64, 4096)
    means = [float(weight.unflatten(1, (-1, width)).abs().amax(-1).mean()) for width in (4096, 128, 64)]
    for mean, expected in zip(means, (3.83, 2.83, 2.60), strict=True):
        assert mean == pytest.approx(expected, abs=0.03)
    errors = [
        float((w_hat(weight, IntegerGrid(4, width, symmetric=True)) - weight).square().mean()) for width in (128, 64)
    ]
    assert errors[1] < errors[0]


def test_bits_of_finequant():
    shape = (4096, 4096)
    assert bits_per_weight(make_recipe("finequant").fields(shape), shape) == 4 + 16 / 64 + 1 / (4096 * 16)
    ragged = bits_per_weight(make_recipe("finequant", {"group_size": 96}).fields((64, 256)), (64, 256))
    assert ragged == 4 + 16 * 3 / 256 + 16 / (64 * 256)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveBlocks(1), r"bits=1\).*2 to 8"),
        (lambda: AdaptiveBlocks(4, 0), r"share=0\).*Use 4"),
        (lambda: make_recipe("finequant", {"group_size": 40}), r"group_size=40, finest=16.*whole multiples"),
        (lambda: make_recipe("finequant").check((8, 40)), r"group_size=16\) does not divide the 40 inputs"),
    ],
)
def test_settings_of_blocks_out_of_range_are_refused(make, message):
    with pytest.raises(BadRequest, match=message):
        make()


def test_blocks_of_zeros_and_of_huge_weights():
    weight = gaussian(4, 32)
    weight[:, 8:16], weight[2] = 0, 0
    assert bool(torch.isfinite(w_hat(weight, adaptive(2))).all())
    with pytest.raises(BadRequest, match=r"AdaptiveBlocks: weights up to .* beyond float16"):
        adaptive(2).fit(plain(weight * 1e7))


# VPTQ's outlier columns


def loud(seed=0, n=32, k=64):
    """A layer whose columns 3, 17 and 40 have inputs thirty times as large."""
    problem = correlated(seed, n, k)
    sizes = torch.ones(k, dtype=torch.float64)
    sizes[[3, 17, 40]] = 30
    # All others alike: `correlated` spreads sizes over two orders of magnitude.
    own = problem.hessian.diagonal().rsqrt() * sizes
    return LayerProblem(problem.weight, own[:, None] * problem.hessian * own)


VECTORS = VectorCodebook(2, 4, along="outputs", importance="diagonal")


def test_columns_with_the_largest_inputs_get_the_finer_codebook():
    code = FinerColumns(VECTORS, 7, 0.05)
    problem = loud()
    rounded = Ldlq().round(problem, code)
    assert rounded.side["finer_column"].tolist() == [3, 17, 40]
    assert rounded.side["finer_codebook"].shape == (1, 128, 2)
    errors = (rounded.w_hat - problem.weight).square().mean(0)
    assert float(errors[[3, 17, 40]].mean()) < 0.2 * float(errors.mean())


def test_finer_columns_pay_where_few_inputs_are_large():
    for seed in range(3):
        problem = loud(seed)
        losses = [problem.loss(Ldlq().round(problem, code).w_hat) for code in (FinerColumns(VECTORS, 7, 0.05), VECTORS)]
        assert losses[0] < 0.8 * losses[1]


def test_usual_columns_are_as_if_the_others_were_not_there():
    problem, code = loud(), FinerColumns(VECTORS, 7, 0.05)
    side = code.fit(problem)
    rest = [j for j in range(64) if j not in (3, 17, 40)]
    alone = VECTORS.fit(LayerProblem(problem.weight[:, rest], problem.hessian[rest][:, rest]))
    quantized = [code.encode(problem.weight, side, torch.arange(64))[1][:, rest]]
    quantized.append(VECTORS.encode(problem.weight[:, rest], alone, torch.arange(61))[1])
    errors = [float((one - problem.weight[:, rest]).square().mean()) for one in quantized]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def test_bits_of_vptq():
    """12 bits for six outputs are two a weight; 1 % of the columns at 13 bits for four."""
    shape, weights = (4092, 4096), 4092 * 4096
    plain_bits = bits_per_weight(make_recipe("vptq", {"dimension": 6, "index_bits": 12}).fields(shape), shape)
    assert plain_bits == 2 + 16 * 6 * 2**12 / weights
    recipe = make_recipe("vptq", {"dimension": 6, "index_bits": 12, "outlier_bits": 13})
    columns = 41
    expected = 2 * (1 - columns / 4096) + 16 * 6 * (2**12 + 2**13) / weights + 13 / 6 * columns / 4096
    assert bits_per_weight(recipe.fields(shape), shape) == pytest.approx(expected + 12 * columns / weights, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FinerColumns(VectorCodebook(2, 4)), 'along="outputs"'),
        (lambda: FinerColumns(VECTORS, 17), "finer=17.*1 to 16"),
        (lambda: FinerColumns(VECTORS, 7, 1.0), r"fraction=1.0.*below 1"),
        (lambda: FinerColumns(VECTORS, 7, 0.99).check((6, 24)), "leaves none of the 24 inputs"),
    ],
)
def test_settings_of_finer_columns_out_of_range_are_refused(make, message):
    with pytest.raises(BadRequest, match=message):
        make()


def test_a_file_that_names_columns_twice_is_refused():
    problem, recipe = loud(), make_recipe("vptq", {"dimension": 2, "index_bits": 4, "outlier_bits": 5})
    code, layer = recipe.code, solve(recipe, problem)
    tensors = {**layer.tensors(), "finer_column": torch.tensor([70])}
    with pytest.raises(BadRequest, match="finer_column does not name 1 of 64 inputs"):
        code.from_fields(tensors, (32, 64))


def test_a_file_whose_blocks_do_not_fit_their_scales_is_refused():
    code = adaptive(4)
    side = code.fit(plain(gaussian()))
    for damaged in (torch.ones(16), torch.zeros(16)):
        with pytest.raises(BadRequest, match="block_start does not mark 4 blocks"):
            code.tables.of({**side, "block_start": damaged}, torch.arange(16))
