"""Named sets of levels and their scales: the numerical checks of LLM-FP4, ZeroQuant(4+2), dINT, NUPES and NF4."""

import pytest
import torch

from laws.lookups import LAID_OUT, LOOKUPS
from laws.problems import correlated
from laws.statements import solve
from lowbit.codes import IntegerGrid, Lookup, ScaledLevels, Scales, SearchedRange
from lowbit.codes.levels import level_set
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.problem import LayerProblem
from lowbit.recipes import make_recipe
from lowbit.rounding import Nearest

EVERY_KIND = [Scales(), Scales("e8m0"), Scales("e4m3", "tensor"), Scales("uint8", "row")]
FLOATS = ("e1m2", "e2m1", "e3m0")


def drawn(kind, n=8, k=512, seed=0):
    """Weights [n, k] of a distribution of unit variance, float64."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, k, generator=generator, dtype=torch.float64)
    uniform = torch.rand(n, k, generator=generator, dtype=torch.float64)
    return {
        "gaussian": normal,
        "uniform": (uniform - 0.5) * 12**0.5,
        "student": normal / (torch.randn(4, n, k, generator=generator).double().square().mean(0)).sqrt() / 2**0.5,
    }[kind]


def error(weight, code):
    problem = LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64))
    return float((Nearest().round(problem, code).w_hat - weight).square().mean())


def searched(levels):
    return Lookup(ScaledLevels(levels, Scales("float32"), SearchedRange(0.1, 90, 2.0)))


def test_floats_are_listed_by_their_bits():
    assert level_set("e2m1") == (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)
    assert sorted(set(level_set("e1m2"))) == [q / 4 for q in range(-7, 8)]
    assert sorted({abs(x) for x in level_set("e3m0")}) == [0, *(2.0**p for p in range(-2, 5))]


def test_fp6_has_63_values_up_to_28():
    levels = level_set("e3m2")
    assert len(levels) == 64
    assert len(set(levels)) == 63
    assert max(levels) == 28
    assert min(x for x in levels if x > 0) == 0.0625


def test_fp6_codes_become_float16_by_a_shift():
    """Sign kept, five bits moved under it, times 2^12: sub-normals come out right for free."""
    codes = torch.arange(64, dtype=torch.int16)
    halves = ((codes & 32) << 10 | (codes & 31) << 8).view(torch.float16).double() * 2.0**12
    assert torch.equal(halves, torch.tensor(level_set("e3m2"), dtype=torch.float64))


def test_fp6_codes_survive_and_take_six_bits():
    recipe, problem = make_recipe("zeroquant_fp6"), correlated(0, 16, 64, dtype=torch.float32)
    layer = solve(recipe, problem)
    fields = recipe.code.fields(problem.shape)
    assert fields["codes"].nbytes + fields["high_codes"].nbytes == 0.75 * problem.weight.numel()
    relative = (layer.dequantize() - problem.weight).abs() / problem.weight.abs()
    normal = problem.weight.abs() > layer.side["scale"] * 0.25
    assert float(relative[normal].max()) <= 1 / 9 + 1e-6


def test_one_exponent_bit_is_the_symmetric_integer_grid():
    """e1m2 is -7 .. 7 in quarters."""
    weight = drawn("gaussian").float()
    as_float = error(weight, Lookup(ScaledLevels("e1m2", Scales("float32"))))
    as_integer = error(weight, Lookup(ScaledLevels(",".join(map(str, range(-7, 8))), Scales("float32"))))
    assert as_float == pytest.approx(as_integer, rel=1e-9)


def test_which_split_wins_depends_on_the_tails():
    """Gaussian weights want e2m1, uniform ones e1m2, heavy tails e3m0 before e1m2 (measured on the card)."""
    errors = {kind: [error(drawn(kind), searched(split)) for split in FLOATS] for kind in ("gaussian", "uniform")}
    assert errors["gaussian"].index(min(errors["gaussian"])) == 1
    assert errors["uniform"].index(min(errors["uniform"])) == 0
    assert errors["gaussian"] == pytest.approx([0.0135, 0.0123, 0.0362], rel=0.15)
    heavy = [error(drawn("student"), Lookup(ScaledLevels(split))) for split in FLOATS]
    assert heavy[2] < heavy[0]


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "student"])
def test_a_choice_is_never_worse_than_its_members(kind):
    weight = drawn(kind)
    chosen = error(weight, searched(FLOATS))
    assert chosen <= min(error(weight, searched(split)) for split in FLOATS) * (1 + 1e-12)
    by_group = Lookup(ScaledLevels(FLOATS, Scales("float32"), SearchedRange(0.1, 90, 2.0), "group"))
    assert error(weight, by_group) <= chosen * (1 + 1e-12)


def test_halving_weights_halves_values():
    weight = drawn("gaussian").float()
    problem, half = (LayerProblem(w, torch.eye(512).double()) for w in (weight, weight / 2))
    code = Lookup(ScaledLevels("e2m1", Scales("e8m0")), 32)
    assert torch.equal(Nearest().round(half, code).w_hat, Nearest().round(problem, code).w_hat / 2)


def test_dint_levels_and_what_they_cost():
    """16 levels, halves around zero; better than integers for bell shapes, worse for uniform weights."""
    levels = level_set("dint4")
    assert len(set(levels)) == 16
    assert levels[6:10] == (-1.0, -0.5, 0.0, 0.5)
    integers = Lookup(ScaledLevels("int4", Scales("float32")))
    for kind, better in (("gaussian", True), ("student", True), ("uniform", False)):
        weight = drawn(kind)
        assert (error(weight, Lookup(ScaledLevels("dint4", Scales("float32")))) < error(weight, integers)) == better


def test_a_power_of_one_is_the_uniform_grid_and_half_suits_bells():
    weight = drawn("gaussian")
    numbers = ",".join(str(q / 7) for q in range(-7, 8))
    uniform = error(weight, Lookup(ScaledLevels(numbers, Scales("float32"))))
    assert error(weight, Lookup(ScaledLevels("power4:1", Scales("float32")))) == pytest.approx(uniform, rel=1e-9)
    assert error(weight, Lookup(ScaledLevels("power4:0.7", Scales("float32")))) < 0.9 * uniform
    layer = solve(make_recipe("nupes"), LayerProblem(weight, torch.eye(512).double()))
    index = int(layer.side["level_set"])
    assert 0.4 < float(layer.recipe.code.tables.levels[index].partition(":")[2]) < 0.9
    flat = solve(make_recipe("nupes"), LayerProblem(drawn("uniform"), torch.eye(512).double()))
    assert float(flat.recipe.code.tables.levels[int(flat.side["level_set"])].partition(":")[2]) >= 0.9


def test_nf4_is_the_published_table():
    below = (-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500)
    above = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1)
    assert level_set("nf4") == pytest.approx((*below, 0, *above), abs=2e-6)


def test_mx_scales_are_those_of_ocp():
    """2^(floor(log2 max) - 2) for e2m1, and only powers of two."""
    weight = torch.tensor([[3.9, 0.1], [4.1, 0.0], [-7.9, 1.0], [0.26, 0.2]])
    side = Lookup(ScaledLevels("e2m1", Scales("e8m0")), 2).fit(LayerProblem(weight, torch.eye(2).double()))
    assert (side["scale_exponent"] - 127).flatten().tolist() == [-1, 0, 0, -4]


def test_nvfp4_beats_mxfp4_and_costs_what_it_says():
    weight = drawn("gaussian", 16, 256)
    mx, nv = (make_recipe("block_float", {"format": f, "range": "minmax"}).code for f in ("mxfp4", "nvfp4"))
    assert bits_per_weight(mx.fields((16, 256)), (16, 256)) == 4.25
    assert bits_per_weight(nv.fields((16, 256)), (16, 256)) == 4.5 + 32 / weight.numel()
    assert error(weight, nv) < error(weight, mx)


def test_the_scale_turns_a_lopsided_set():
    code = Lookup(ScaledLevels("-1, 0, 1, 2", Scales("float32")))
    weight = torch.tensor([[2.0, -1.0, 1.0, 0.0], [-2.0, 1.0, -1.0, 0.0]])
    assert error(weight, code) == 0


@pytest.mark.parametrize("code", (LOOKUPS | LAID_OUT).values(), ids=LOOKUPS | LAID_OUT)
def test_what_is_called_a_scale_is_positive(code):
    """The format refuses others."""
    side = Nearest().round(correlated(0), code).side
    for name in code.fields((6, 24)):
        assert not name.endswith("scale") or name == "block_scale" or bool((side[name] > 0).all())


BAD = [
    (lambda: ScaledLevels("e9m1"), "levels='e9m1': unknown.*e2m1"),
    (lambda: ScaledLevels("int9"), "levels='int9': unknown"),
    (lambda: ScaledLevels("power4:0"), "unknown"),
    (lambda: ScaledLevels("0, 0"), "different ones; must be 2 to 256"),
    (lambda: ScaledLevels("0, nan"), "unknown"),
    (lambda: ScaledLevels(()), "must name 1 to 256 sets"),
    (lambda: ScaledLevels(choice="row"), 'choice=.row.*"layer" or "group"'),
    (lambda: Scales("float8"), "kind='float8'.*float16.*uint8"),
    (lambda: Scales("float16", "row"), "needs no outer scale"),
    (lambda: Scales("uint8"), 'outer="row"'),
    (lambda: Lookup(ScaledLevels(), 0), 'group_size=0.*"row" or "tensor"'),
    (lambda: Lookup(ScaledLevels(), scales="lazy"), '"dynamic" or "static"'),
    (lambda: make_recipe("llm_fp4", {"bits": 2}), "bits=2.*3 to 8"),
    (lambda: make_recipe("block_float", {"format": "mxfp5"}), "format must be .*nvfp4.; 'mxfp5' was given"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings_are_refused(make, message):
    with pytest.raises(BadRequest, match=message):
        make()


def test_groups_that_do_not_divide_are_refused_with_two_that_do():
    with pytest.raises(BadRequest, match=r"group_size=7\) does not divide the 24 inputs.*6 or 8"):
        Lookup(ScaledLevels(), 7).check((6, 24))


def test_scales_that_overflow_are_refused():
    problem = LayerProblem(torch.full((2, 4), 1e6), torch.eye(4).double())
    with pytest.raises(BadRequest, match=r"weights up to 1e\+06 need scales.*bfloat16"):
        Lookup(ScaledLevels("ternary")).fit(problem)


@pytest.mark.parametrize(
    "scales", [Scales(), Scales("e8m0"), Scales("e4m3", "tensor"), Scales("uint8", "row")], ids=str
)
@pytest.mark.parametrize("levels", ["e2m1", "binary", "-1, 0, 1, 2"])
def test_extreme_weights_stay_finite(scales, levels):
    """Zeros, numbers below every scale, and one huge weight beside tiny ones."""
    weight = torch.zeros(4, 8)
    weight[1], weight[2, 3], weight[3] = 1e-30, 60000.0, torch.linspace(-1e-7, 1e-7, 8)
    w_hat = Nearest().round(LayerProblem(weight, torch.eye(8).double()), Lookup(ScaledLevels(levels, scales), 4)).w_hat
    assert bool(torch.isfinite(w_hat).all())
    assert levels == "binary" or not bool(w_hat[0].any())


def test_the_integer_grid_is_one_of_them():
    weight = drawn("gaussian", 4, 64)
    ours = error(weight, Lookup(ScaledLevels("int8", Scales("float32"))))
    assert ours == pytest.approx(error(weight, IntegerGrid(8, symmetric=True, scale_dtype="float32")), rel=0.05)
