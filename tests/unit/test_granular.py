"""Where bits and scales go: the numerical checks of DGQ, SliM-LLM and PB-LLM, and the layouts of codes."""

from dataclasses import replace

import pytest
import torch

from laws.problems import correlated
from laws.statements import solve
from lowbit.codes import (
    BlockScaled,
    ClusteredLevels,
    Digits,
    DualGrained,
    Exchanged,
    HessianRange,
    IntegerGrid,
    LaidOut,
    Lookup,
    MinMax,
    MixedWidths,
    PartialBinary,
    Planes,
    ScaledLevels,
    SearchedRange,
    VectorCodebook,
)
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.problem import LayerProblem
from lowbit.recipes import make_recipe
from lowbit.rounding import Ldlq, Nearest


def gaussian(n=8, k=64, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(weight):
    return LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64))


def error(weight, code):
    return float((Nearest().round(plain(weight), code).w_hat - weight).square().sum())


# DGQ


def test_dual_grained_products_are_integers_of_eight_bits():
    """Sum_G k_G sum (q - z) x in int64, times the row's scale, is the product with the decoded weights."""
    problem, code = correlated(0, 8, 64), Lookup(DualGrained(4), 16)
    rounded = Ldlq().round(problem, code)
    whole, zero = (rounded.side[name].long().repeat_interleave(16, 1) for name in ("group_scale", "zero"))
    most = 127 // whole
    small = whole * (rounded.codes.long() - zero).clamp(-most, most)
    assert int(small.abs().max()) <= 127
    x = torch.randint(-127, 128, (64,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rounded.side["scale"][:, 0] * (small @ x), rounded.w_hat @ x.double())


def test_dual_grain_lies_between_groups_of_their_own_and_rows():
    weight = gaussian(8, 128) * torch.logspace(-0.3, 0.3, 128, dtype=torch.float64)
    searched = SearchedRange(0.8, 20, 2.0)
    groups = error(weight, IntegerGrid(4, 32, range=searched, scales="static"))
    rows = error(weight, IntegerGrid(4, "row", range=searched, scales="static"))
    assert groups <= error(weight, Lookup(DualGrained(4, searched), 32)) * 1.02
    assert error(weight, Lookup(DualGrained(4, searched), 32)) < rows


def test_whole_multiples_of_a_scale_are_met_exactly():
    codes = torch.arange(16).repeat(4)[None].double() - 7
    weight = codes * torch.tensor([4.0, 6, 9, 15]).double().repeat_interleave(16) * 0.25
    assert error(weight, Lookup(DualGrained(4, MinMax(), 200), 16)) < 1e-4 * float(weight.square().sum())


# SliM-LLM


def widths(problem, bits=2, group=8):
    return Lookup(MixedWidths(bits, HessianRange(steps=20)), group).fit(problem)["width"]


def test_the_sum_of_bits_is_kept():
    for seed in range(6):
        for groups in (4, 8, 24):
            assert int(widths(correlated(seed), 3, groups).sum()) == 3 * (24 // groups)


def test_a_group_with_loud_inputs_gets_a_bit_more():
    problem = correlated(0, 8, 64)
    scale = torch.ones(64, dtype=torch.float64)
    scale[16:24] = 30
    hessian = torch.eye(64, dtype=torch.float64) * scale.square()
    chosen = widths(LayerProblem(problem.weight, hessian))
    assert chosen[2] == 3
    assert int(chosen.sum()) == 16


def test_equal_groups_keep_their_bits_and_are_those_of_optq():
    """Nothing to gain from a narrow group of one bit: bit for bit the integer grid of two."""
    weight = gaussian(16, 8).repeat(1, 4)
    problem = plain(weight)
    assert widths(problem).tolist() == [2, 2, 2, 2]
    grid = HessianRange(steps=20)
    ours = Ldlq().round(problem, Lookup(MixedWidths(2, grid), 8)).w_hat
    assert torch.equal(ours, Ldlq().round(problem, IntegerGrid(2, 8, range=grid)).w_hat)


def test_salient_widths_beat_equal_ones_where_groups_differ():
    gains = []
    for seed in range(4):
        problem = correlated(seed, 16, 96)
        loud = torch.logspace(-1.5, 1.5, 12, dtype=torch.float64).repeat_interleave(8)
        problem = replace(problem, hessian=loud[:, None] * problem.hessian * loud)
        grid = HessianRange(steps=20)
        ours = problem.loss(Ldlq().round(problem, Lookup(MixedWidths(2, grid), 8)).w_hat)
        gains.append(problem.loss(Ldlq().round(problem, IntegerGrid(2, 8, range=grid)).w_hat) / ours)
    assert min(gains) > 1.2


# PB-LLM


def test_all_salient_is_eight_bits_and_errors_fall_with_the_share():
    weight = gaussian(8, 64)
    errors = [error(weight, PartialBinary(share, "row", "none")) for share in (0.02, 0.1, 0.3, 0.6, 1.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(64 * 8 * (float(weight.max() - weight.min()) / 255) ** 2 / 12, rel=0.5)


def test_levels_are_those_of_the_weights_that_are_not_salient():
    weight = gaussian(4, 64)
    code = PartialBinary(0.1, "row", "none")
    side = code.fit(plain(weight))
    for row, salient, levels in zip(weight, side["salient"].bool(), side["levels"][:, 0], strict=True):
        assert int(salient.sum()) == code.salient_count(64) == 6
        assert float(row[salient].abs().min()) >= float(row[~salient].abs().max())
        rest = row[~salient]
        nearest = rest > levels.mean()
        torch.testing.assert_close(
            levels, torch.stack((rest[~nearest].mean(), rest[nearest].mean())), rtol=1e-3, atol=0
        )


def test_salience_by_cost_beats_magnitude():
    gains = []
    for seed in range(6):
        problem = correlated(seed, 16, 64)
        by = [problem.loss(Ldlq().round(problem, PartialBinary(0.1, 16, how)).w_hat) for how in ("conditional", "none")]
        gains.append(by[1] / by[0])
    assert sum(gain > 1 for gain in gains) >= 5


@pytest.mark.parametrize(("share", "bits"), [(0.05, 2.35), (0.1, 2.7), (0.2, 3.4), (0.3, 4.1)])
def test_the_mask_is_counted(share, bits):
    """1 - r + 8 r + 1 bits, and levels."""
    shape = (64, 4000)
    assert bits_per_weight(PartialBinary(share, "row").fields(shape), shape) == pytest.approx(
        bits + 64 / 4000, abs=1e-3
    )


# Layouts


@pytest.mark.parametrize(("levels", "per_byte"), [(3, 5), (4, 4), (5, 3), (6, 3), (7, 2), (15, 2)])
def test_digits_fill_bytes(levels, per_byte):
    layout = Digits(levels)
    codes = torch.randint(0, levels, (3, 22), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    stored = layout.store(codes, {})
    assert layout.per_byte == per_byte
    assert torch.equal(layout.load(stored, (3, 22)), codes)
    assert layout.fields((3, 22))["codes"].nbytes == 3 * -(-22 // per_byte)


def test_planes_split_bits():
    codes = torch.arange(64, dtype=torch.uint8).view(2, 32)
    stored = Planes(4, 2).store(codes, {})
    assert torch.equal(stored["codes"].flatten(), torch.arange(64, dtype=torch.uint8) & 15)
    assert torch.equal(Planes(4, 2).load(stored, (2, 32)), codes)


def test_a_wide_group_keeps_its_spare_bits_with_a_narrow_one():
    width = torch.tensor([3, 2, 1, 1, 3])
    codes = torch.stack([torch.randint(0, 2 ** int(w), (4, 6)) for w in width], 1).flatten(1).to(torch.uint8)
    layout = Exchanged(2)
    stored = layout.store(codes, {"width": width})
    assert stored["codes"].shape == layout.fields((4, 30))["codes"].shape == (4, 2, 30)
    assert torch.equal(layout.load({**stored, "width": width}, (4, 30)), codes)
    with pytest.raises(BadRequest, match="not as many wide groups as narrow"):
        layout.load({**stored, "width": torch.tensor([3, 2, 2, 1, 3])}, (4, 30))


def test_ternary_takes_one_and_six_tenths_bits():
    code = make_recipe("ternary", {"group_size": 320}).code
    assert bits_per_weight(code.fields((4, 640)), (4, 640)) == pytest.approx(1.6 + 16 / 320)


@pytest.mark.parametrize("name", ["ternary", "slim_llm", "zeroquant_fp6", "pb_llm"])
def test_layouts_change_no_value(name):
    settings = {} if name == "zeroquant_fp6" else {"group_size": 8}
    recipe = make_recipe(name, settings)
    problem = correlated(0, dtype=torch.float32)
    inner = recipe.code.code if isinstance(recipe.code, LaidOut) else recipe.code
    expected = recipe.rounder.round(problem, inner).w_hat
    assert torch.equal(solve(recipe, problem).dequantize(), expected)


BAD = [
    (lambda: DualGrained(7), "bits=7.*1 to 6"),
    (lambda: DualGrained(steps=0), "steps=0.*Use 80"),
    (lambda: MixedWidths(1), "average=1.*2 to 7"),
    (lambda: PartialBinary(0), r"fraction=0\).*Use 0.1"),
    (lambda: PartialBinary(0.1, -3), 'group_size=-3.*"row"'),
    (lambda: PartialBinary(0.1, 7).check((6, 24)), r"group_size=7\) does not divide the 24 inputs.*6 or 8"),
    (lambda: Planes(6, 3), "at most 8 together"),
    (lambda: Digits(2), "levels=2.*3 to 15"),
    (lambda: Exchanged(1), "bits=1.*2 to 7"),
    (lambda: LaidOut(Lookup(ScaledLevels("e2m1")), Planes(4, 2)), r"Planes\(low=4, high=2\): the codes have 4 bits"),
    (lambda: LaidOut(Lookup(ScaledLevels("e2m1")), Digits(3)), "the codes have 4 bits"),
    (lambda: LaidOut(Lookup(ClusteredLevels(3)), Exchanged(2)), "needs tables that widths differ in"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings_are_refused(make, message):
    with pytest.raises(BadRequest, match=message):
        make()


@pytest.mark.parametrize(
    "code",
    [Lookup(DualGrained(4, steps=5), 4), LaidOut(Lookup(MixedWidths(2), 2), Exchanged(2)), PartialBinary(0.2, 4)],
    ids=lambda code: type(code).__name__,
)
def test_extreme_weights_stay_finite(code):
    weight = torch.zeros(4, 8)
    weight[1], weight[2, 3], weight[3] = 1e-30, 60000.0, torch.linspace(-1e-7, 1e-7, 8)
    for rounder in (Nearest(), Ldlq()):
        rounded = rounder.round(LayerProblem(weight, torch.eye(8).double()), code)
        assert bool(torch.isfinite(rounded.w_hat).all())
    with pytest.raises(BadRequest, match=r"float16|this type"):
        code.fit(LayerProblem(torch.full((4, 8), 1e9), torch.eye(8).double()))


# Scales of blocks


def test_scales_of_blocks_help_where_blocks_differ():
    """Sixteen sizes, four bits: after scaling all blocks are alike, and one codebook serves them."""
    sizes = torch.logspace(-1, 1, 16, dtype=torch.float64).repeat_interleave(8)
    weight = gaussian(32, 128) * sizes
    problem = plain(weight / sizes.mean())
    plain_code = VectorCodebook(2, 6, importance="none")
    losses = [problem.loss(Nearest().round(problem, code).w_hat) for code in (plain_code, BlockScaled(plain_code, 8))]
    assert losses[1] < 0.8 * losses[0]


def test_scales_of_blocks_are_storable_and_near_the_largest_weight():
    weight = gaussian(4, 32)
    weight[2, 8:16] = 0
    code = BlockScaled(Lookup(ClusteredLevels(2)), 8)
    side = code.fit(plain(weight))
    low, step = side["block_range"]
    scale = (low + step * side["block_scale"]).exp2()
    largest = weight.unflatten(1, (-1, 8)).abs().amax(-1)
    live = largest > 0
    assert float((scale[live] / largest[live]).log2().abs().max()) <= float(step) / 2 + 1e-6
    assert bool(torch.isfinite(Ldlq().round(plain(weight), code).w_hat).all())


def test_blocks_hold_whole_tiles_of_one_row():
    with pytest.raises(BadRequest, match="whole tiles of one row; those of the code are 1 x 2"):
        BlockScaled(VectorCodebook(2, 4), 5)
    with pytest.raises(BadRequest, match="those of the code are 2 x 1"):
        BlockScaled(VectorCodebook(2, 4, along="outputs"), 4)
    with pytest.raises(BadRequest, match=r"block_size=16\) does not divide the 24 inputs"):
        BlockScaled(VectorCodebook(2, 4), 16).check((6, 24))
