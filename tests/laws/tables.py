"""Every part there is, by name: the laws hold for the rows of these tables and for their products.

A new part is one new row. `test_tables.py` fails while an exported part or a recipe has none.
"""

from dataclasses import replace
from itertools import product

import torch

from laws import toys
from laws.lookups import LAID_OUT, LOOKUP_RECIPES, LOOKUPS
from laws.problems import K, N
from laws.toys import Codebook, FloatMoment, Lattice, Rotated, Scaled, Sheared
from lowbit.codes import (
    E8P,
    BitshiftTrellis,
    HessianRange,
    IntegerGrid,
    Levelled,
    MidriseGrid,
    MinMax,
    Padded,
    SearchedRange,
    TailBiting,
    VectorCodebook,
)
from lowbit.core.fields import Array
from lowbit.core.levels import has_levels
from lowbit.core.maps import Dense, Diagonal, Identity, Permutation, compose
from lowbit.core.parts import Code, linear_fields
from lowbit.core.recipe import Recipe
from lowbit.recipes import make_recipe
from lowbit.rounding import (
    Beam,
    ClampSafe,
    CoordinateDescent,
    Gpfq,
    Ldlq,
    MagR,
    Nearest,
    Optq,
    QuantEase,
    RefittedScales,
    RefittedTables,
    Stochastic,
)
from lowbit.sidecars import (
    HardThresholding,
    KeptColumns,
    LowRank,
    Magnitude,
    RoundingCost,
    Sensitivity,
    SparseOutliers,
    TwoCriteria,
)
from lowbit.statistics import (
    ActivationNorm,
    AttentionAware,
    AttentionReceived,
    CrossMoment,
    FirstTokens,
    FisherDiagonal,
    GradientCovariance,
    GradientEnergy,
    Isotropic,
    SecondMoment,
    TokenRarity,
    TwoSided,
    Uniform,
    WeightedMoment,
)
from lowbit.transforms import (
    ActOrder,
    Chain,
    ChannelScales,
    GroupOrder,
    NoTransform,
    RandomizedHadamard,
    RandomKronecker,
    Rescale,
    StaticOrder,
)
from lowbit.transforms.hadamard import HadamardMap, Signs
from lowbit.transforms.kronecker import KroneckerMap
from lowbit.transforms.orthogonal import orthogonal

STATISTICS = {
    "second moment": SecondMoment(),
    "isotropic": Isotropic(),
    "cross moment": CrossMoment(),
    "weighted by attention": WeightedMoment(),
    "weighted by norm": WeightedMoment(ActivationNorm(), minimum=0.1),
    "weighted by rarity": WeightedMoment(TokenRarity()),
    "first tokens": WeightedMoment(FirstTokens(3), minimum=0),
    "weighted alike": WeightedMoment(Uniform()),
    "attention-aware": AttentionAware(),
    "two-sided": TwoSided(rows=GradientCovariance()),
    "cross moment for outputs that count": TwoSided(CrossMoment(), GradientEnergy()),
    "sensitive weights": FisherDiagonal(),
    "sensitive weights and outputs": TwoSided(FisherDiagonal(CrossMoment())),
    "toy: float moment": FloatMoment(),
}

IMPORTANCES = [AttentionReceived(), ActivationNorm(), TokenRarity(), FirstTokens(3), Uniform()]
ROW_MOMENTS = [GradientCovariance(), GradientEnergy()]

TRANSFORMS = {
    "none": NoTransform(),
    "act-order": ActOrder(),
    "static order": StaticOrder(),
    "act-order by pivots": ActOrder("pivot"),
    "static order by norms": StaticOrder("norm"),
    "order of whole groups": GroupOrder(8),
    "empty chain": Chain(()),
    "hadamard": RandomizedHadamard(),
    "hadamard of the inputs in eights": RandomizedHadamard(8, "right"),
    "kronecker": RandomKronecker(),
    "rescaled": Rescale(),
    "channel scales": ChannelScales(),
    "row scales": ChannelScales("left"),
    "scales to a size": ChannelScales(size=0.9),
    "quip": Chain((Rescale(), RandomKronecker())),
    "hadamard, then visited in order": Chain((RandomizedHadamard(), StaticOrder())),
    "toy: rotated": Rotated(),
    "toy: sheared": Sheared(),
    "toy: scaled": Scaled(),
    "toy: scaled, then act-order": Chain((Scaled(), ActOrder())),
    "toy: rotated, then visited in order": Chain((Rotated(), StaticOrder())),
    "toy: a chain in a chain": Chain((Chain((ActOrder(),)), Chain((Sheared(), StaticOrder())))),
}

RANGES = {"min-max": MinMax(), "searched": SearchedRange(steps=20), "hessian": HessianRange(steps=20)}

SHAPED = {
    "levelled trellis": Levelled(TailBiting(BitshiftTrellis(6, 2, tile=(4, 2), values="gaussian", scales="tensor"))),
    "levelled trellis that leaves a row over": Levelled(
        TailBiting(BitshiftTrellis(6, 2, tile=(5, 3), values="gaussian", scales="tensor"))
    ),
    "levelled and padded trellis": Levelled(
        TailBiting(BitshiftTrellis(6, 2, tile=(4, 5), values="gaussian", scales="tensor"))
    ),
    "widened trellis": Levelled(TailBiting(BitshiftTrellis(6, 2, tile=(16, 1), values="gaussian"), joint=1)),
}

CODES = {
    **{f"{bits} bits": IntegerGrid(bits) for bits in range(1, 9)},
    **{f"{bits} bits symmetric": IntegerGrid(bits, symmetric=True) for bits in (1, 2, 4, 8)},
    "per tensor": IntegerGrid(4, "tensor"),
    "groups": IntegerGrid(3, 8),
    "groups of one": IntegerGrid(2, 1),
    "static groups": IntegerGrid(3, 8, scales="static"),
    "symmetric groups": IntegerGrid(1, 4, symmetric=True),
    "searched range": IntegerGrid(3, 12, range=RANGES["searched"]),
    "searched symmetric": IntegerGrid(2, "row", symmetric=True, range=RANGES["searched"]),
    "hessian range": IntegerGrid(3, 12, range=RANGES["hessian"]),
    "hessian range per tensor": IntegerGrid(2, "tensor", range=RANGES["hessian"]),
    "bfloat16 scales": IntegerGrid(4, 8, scale_dtype="bfloat16"),
    "float32 scales": IntegerGrid(4, "row", scale_dtype="float32"),
    "e8p": E8P(),
    "e8p, 3 bits": E8P(3),
    "e8p, 4 bits with headroom": E8P(4, headroom=1.2),
    "vectors of inputs": VectorCodebook(2, 4, importance="none"),
    "vectors of inputs, eight bits": VectorCodebook(2, 3, 2, group_size=12, codebooks="dynamic", dtype="int8"),
    "vectors of outputs in groups": VectorCodebook(2, 3, along="outputs", group_size=8, codebooks="dynamic"),
    "vectors of outputs in static groups": VectorCodebook(2, 2, along="outputs", group_size=12, importance="diagonal"),
    "vectors of inputs in two stages": VectorCodebook(2, 2, 2, group_size=12, codebooks="dynamic"),
    "trellis of strips": BitshiftTrellis(6, 2, tile=(6, 1), values="gaussian", scales="tensor"),
    "trellis of two columns, closed": TailBiting(
        BitshiftTrellis(6, 2, tile=(6, 2), values="gaussian", scales="tensor")
    ),
    "trellis of squares, 1.5 bits": TailBiting(BitshiftTrellis(6, 1.5, 2, (3, 4), "gaussian", scale_dtype="float32")),
    "midrise grid": MidriseGrid(),
    "midrise grid, 1 bit": MidriseGrid(1, reach=1.0),
    "padded trellis, settled column by column": Padded(
        TailBiting(BitshiftTrellis(6, 2, tile=(6, 5), values="gaussian", scales="tensor"), joint=1)
    ),
    "trellis settled two columns at a time, pairs of outputs": TailBiting(
        BitshiftTrellis(6, 1.5, 2, (4, 3), "gaussian"), joint=2
    ),
    **{name: code.at((N, K)) for name, code in SHAPED.items()},
    **LOOKUPS,
    **LAID_OUT,
    "toy: pairs of columns": Codebook(6, (1, 2)),
    "toy: quadruples of columns": Codebook(8, (1, 4)),
    "toy: pairs of rows": Codebook(5, (2, 1)),
    "toy: squares": Codebook(7, (2, 2)),
    "toy: lattice": Lattice(),
}

GREEDY = (
    "e8p, 3 bits",
    "e8p, 4 bits with headroom",
    "vectors of inputs in two stages",
    "vectors of inputs, eight bits",
    "trellis of two columns, closed",
    "trellis of squares, 1.5 bits",
    "levelled trellis",
    "levelled trellis that leaves a row over",
    "padded trellis, settled column by column",
    "trellis settled two columns at a time, pairs of outputs",
    "levelled and padded trellis",
    "widened trellis",
)
"""Codes of two stages: the first takes its nearest, which may not be the one that serves both best. A closed trellis
settles its seam first, a trellis with a scale for each row measures distances in units of them, and what fills up a
tile is aimed at zero."""

ROUNDERS = {
    "nearest": Nearest(),
    "ldlq": Ldlq(),
    "ldlq, odd slabs": Ldlq(damping=0.1, slab=5),
    "optq": Optq(),
    "descent": CoordinateDescent(Ldlq(), passes=2),
    "refitted": RefittedScales(Ldlq()),
    "refitted tables": RefittedTables(Ldlq(), 4),
    "beam": Beam(width=5, candidates=2),
    "gpfq": Gpfq(),
    "quantease": QuantEase(sweeps=3),
    "clamp-safe": ClampSafe(excess=0.1, iterations=5),
    "unbiased": Stochastic(Ldlq()),
    "shrunk": MagR(Ldlq(), iterations=5),
}
BY_LEVELS = ("beam", "unbiased")
"""Rounders that refuse codes whose single weights have no levels of their own."""
COLUMN_BY_COLUMN = ("optq", *BY_LEVELS)
"""Rounders that refuse codes with wider tiles."""
ONE_SCALE = ("refitted",)
"""Rounders that refuse codes without one scale for the layer or one a row."""
LINEAR = ("refitted tables",)
"""Rounders that refuse codes whose values are not linear in their side information."""
NOT_NEAREST = ("refitted", "refitted tables", "unbiased", "shrunk")
"""Rounders that do not store the nearest values even where nothing else matters."""

CRITERIA = {
    "magnitude": Magnitude(),
    "rounding cost": RoundingCost(CODES["2 bits"]),
    "rounding cost by diagonal": RoundingCost(CODES["groups"], 8, "diagonal"),
    "sensitivity": Sensitivity(),
    "sensitivity, then magnitude": TwoCriteria(Sensitivity(), 0.02, Magnitude()),
}

SIDE_CARS = {
    "one column": KeptColumns(CODES["2 bits"], 0.05),
    "every column": KeptColumns(SHAPED["levelled trellis"], 16.9),
    **{f"outliers by {name}": SparseOutliers(criterion, 0.05) for name, criterion in CRITERIA.items()},
    "every weight": SparseOutliers(Magnitude(), 1.0),
    "thresholded outliers": HardThresholding(SparseOutliers(Magnitude(), 0.1), turns=2),
    "low rank": LowRank(2),
    "low rank of the error, int8": LowRank(3, "identity", "int8"),
    "low rank of what the loss minds": LowRank(2, "fisher"),
    "full rank, in turns": LowRank(6, "diagonal", turns=3),
    "low rank of what codes left": LowRank(2, "identity", first="codes"),
    "toy: low rank": toys.LowRank(2),
}

RECIPES = {
    "rtn": make_recipe("rtn"),
    "rtn 3 bits in groups": make_recipe("rtn", {"bits": 3, "group_size": 8}),
    "rtn symmetric": make_recipe("rtn", {"bits": 2, "symmetric": True}),
    "rtn per tensor": make_recipe("rtn", {"bits": 8, "group_size": "tensor"}),
    "rtn mse": make_recipe("rtn", {"bits": 3, "range": "mse"}),
    "rtn hessian": make_recipe("rtn", {"bits": 2, "range": "hessian"}),
    "optq": make_recipe("optq"),
    "optq whole row by -1": make_recipe("optq", {"group_size": -1, "refresh": "block"}),
    "optq 3 bits in groups": make_recipe("optq", {"bits": 3, "group_size": 8}),
    "optq symmetric": make_recipe("optq", {"bits": 2, "group_size": 12, "symmetric": True}),
    "optq one bit": make_recipe("optq", {"bits": 1, "symmetric": True}),
    "optq act-order": make_recipe("optq", {"bits": 3, "act_order": True}),
    "optq act-order in groups": make_recipe("optq", {"bits": 3, "group_size": 8, "act_order": True}),
    "optq static groups": make_recipe("optq", {"bits": 3, "group_size": 8, "act_order": True, "static_groups": True}),
    "optq mse": make_recipe("optq", {"bits": 2, "group_size": 24, "range": "mse", "damping": 0.1}),
    "optq one group of columns a scale": make_recipe("optq", {"bits": 8, "group_size": 1, "static_groups": True}),
    "beam": make_recipe("beam", {"width": 4, "passes": 1}),
    "beam in groups": make_recipe("beam", {"bits": 2, "group_size": 8, "width": 3, "passes": 0}),
    "integers": make_recipe("integers", {"group_size": 8, "width": 3, "turns": 1}),
    "integers, symmetric rows": make_recipe("integers", {"bits": 3, "group_size": "row", "symmetric": True}),
    "quantease": make_recipe("quantease", {"sweeps": 3}),
    "gpfq": make_recipe("gpfq", {"bits": 3, "group_size": 8}),
    "magr": make_recipe("magr", {"passes": 2}),
    "optq_stochastic": make_recipe("optq_stochastic", {"bits": 3, "act_order": True, "seed": 3}),
    "quip": make_recipe("quip"),
    "quip 3 bits, greedy": make_recipe("quip", {"bits": 3, "passes": 2}),
    "quip_sharp": make_recipe("quip_sharp", {"passes": 2}),
    "quip_sharp 4 bits": make_recipe("quip_sharp", {"bits": 4, "passes": 0, "headroom": 1.1}),
    "qtip": make_recipe("qtip", {"L": 8}),
    "qtip hyb": make_recipe("qtip", {"values": "hyb", "bits": 3}),
    "exl3": make_recipe("exl3", {"L": 8}),
    "trellis": make_recipe("trellis", {"L": 8}),
    "trellis in columns, one scale": make_recipe("trellis", {"L": 8, "bits": 3, "columns": 1, "scales": "tensor"}),
    "trellis, another pass": make_recipe("trellis", {"L": 8, "bits": 3, "columns": 16, "passes": 1}),
    "owq": make_recipe("owq"),
    "owq visited in order": make_recipe("owq", {"bits": 2, "extra_bits": 3.0, "group_size": 8, "act_order": True}),
    "quantease_outlier": make_recipe("quantease_outlier", {"turns": 2, "passes": 2, "fraction": 0.03}),
    "spqr": make_recipe("spqr", {"group_size": 4, "scale_groups": 4, "fraction": 0.05}),
    "easyquant": make_recipe("easyquant", {"fraction": 0.02}),
    "gwq": make_recipe("gwq", {"group_size": 8, "fraction": 0.03}),
    "lorc": make_recipe("lorc", {"rank": 2}),
    "lq_lora": make_recipe("lq_lora", {"rank": 1, "turns": 2, "group_size": 8, "dtype": "int8"}),
    "lq_lora by the loss": make_recipe("lq_lora", {"rank": 2, "turns": 2, "group_size": 8, "metric": "fisher"}),
    "qronos": make_recipe("qronos", {"bits": 3}),
    "qronos in groups": make_recipe("qronos", {"bits": 2, "group_size": 8, "act_order": False}),
    "rsq": make_recipe("rsq", {"bits": 3}),
    "rsq by norm, in groups": make_recipe("rsq", {"bits": 2, "group_size": 8, "importance": "norm"}),
    "boa": make_recipe("boa", {"bits": 2}),
    "boa act-order": make_recipe("boa", {"bits": 3, "group_size": 8, "act_order": True}),
    **{name: make_recipe(name.split()[0], settings) for name, settings in LOOKUP_RECIPES.items()},
    "kquant": replace(make_recipe("kquant"), code=LOOKUPS["super-blocks"]),  # in blocks that fit
    "optq hessian": make_recipe("optq", {"bits": 2, "group_size": "tensor", "range": "hessian", "damping": 0.0}),
}
"""Every named method with a spread of settings that fits the [6, 24] layers of `laws.problems`."""

COMBINATIONS = {
    name: Recipe(name, SecondMoment(), TRANSFORMS[transform], CODES[code], Ldlq())
    for name, transform, code in [
        ("hadamard ldlq", "hadamard", "2 bits"),
        ("kronecker ldlq in groups", "kronecker", "groups"),
        ("quip", "quip", "2 bits symmetric"),
        ("channel scales and float32 scales", "channel scales", "float32 scales"),
        ("hadamard visited in order", "hadamard, then visited in order", "static groups"),
        ("groups visited whole", "order of whole groups", "groups"),
        ("quip#", "hadamard", "e8p"),
        ("hadamard e8p with a second stage", "hadamard", "e8p, 3 bits"),
        ("vectors of inputs in two stages", "none", "vectors of inputs in two stages"),
        ("vectors of outputs, act-order", "act-order", "vectors of outputs in groups"),
        ("hadamard squeezellm", "hadamard of the inputs in eights", "clusters of a row"),
        ("hadamard jlcm", "hadamard", "two tables for all rows"),
        ("hadamard lcq", "hadamard", "low-rank tables"),
        ("hadamard nf3", "hadamard", "nf3, six-bit scales"),
        ("hadamard gptqt", "hadamard of the inputs in eights", "planes on a finer grid"),
        ("hadamard fp6", "hadamard", "fp6 in two planes"),
        ("hadamard ternary", "hadamard of the inputs in eights", "ternary digits"),
        ("hadamard slim-llm", "hadamard", "mixed widths"),
        ("hadamard pb-llm", "hadamard of the inputs in eights", "partly binary"),
        ("hadamard vectors with scales of blocks", "hadamard", "pairs with scales of blocks"),
    ]
}
"""Parts put together that have no recipe of their own."""

TOY_RECIPES = {
    "toy: pairs after rotation": Recipe("toy", SecondMoment(), Rotated(), Codebook(6), Ldlq()),
    "toy: squares after scaling": Recipe("toy", SecondMoment(), Scaled(), Codebook(7, (2, 2)), Ldlq(slab=3)),
    "toy: rotated and visited": Recipe(
        "toy", FloatMoment(), TRANSFORMS["toy: rotated, then visited in order"], CODES["static groups"], Ldlq()
    ),
    "toy: scaled and act-ordered": Recipe(
        "toy", SecondMoment(), TRANSFORMS["toy: scaled, then act-order"], CODES["groups"], Ldlq()
    ),
    "toy: low rank beside 2 bits": Recipe("toy", SecondMoment(), ActOrder(), IntegerGrid(2), Ldlq(), toys.LowRank(2)),
    "toy: everything": Recipe("toy", SecondMoment(), Sheared(), Codebook(5), Nearest(), toys.LowRank(1)),
}

_GENERATOR = torch.Generator().manual_seed(0)
_ORTHOGONAL = Rotated()._draw(8, _GENERATOR)
_ORTHOGONAL_FOUR = orthogonal(4, 0)
_REVERSED = Permutation(torch.tensor([7, 6, 5, 4, 3, 2, 0, 1]))
_DOUBLED = Diagonal(torch.linspace(0.5, 2, 8, dtype=torch.float64))

MAPS = {
    "identity": Identity(),
    "permutation": _REVERSED,
    "diagonal": _DOUBLED,
    "orthogonal": Dense(_ORTHOGONAL, is_orthogonal=True),
    "dense": Dense(Sheared()._draw(8, _GENERATOR)),
    "permutation after diagonal": compose(_REVERSED, _DOUBLED),
    "diagonal after orthogonal": compose(_DOUBLED, Dense(_ORTHOGONAL, is_orthogonal=True)),
    "two permutations": compose(_REVERSED, _REVERSED),
    "after the identity": compose(_DOUBLED, Identity()),
    "signs": Signs(torch.tensor([1, -1, -1, 1, 1, 1, -1, 1], dtype=torch.int8)),
    "hadamard": HadamardMap(3, torch.ones(1, 1, dtype=torch.float64)),
    "hadamard of halves beside an orthogonal four": HadamardMap(1, _ORTHOGONAL_FOUR),
    "hadamard in runs of four": HadamardMap(0, _ORTHOGONAL_FOUR),
    "kronecker": KroneckerMap(HadamardMap(1, torch.ones(1, 1)).apply(torch.eye(2).double()), _ORTHOGONAL_FOUR),
    "three": compose(_DOUBLED, compose(_REVERSED, Dense(_ORTHOGONAL, is_orthogonal=True))),
}
"""Linear maps of 8 features."""


def has_one_scale(code: Code) -> bool:
    """Whether a code stores one scale for a layer of `laws.problems`, or one a row."""
    scale = code.fields((N, K)).get("scale")
    return isinstance(scale, Array) and scale.shape in ((1,), (1, 1), (N, 1))


PAIRS = {
    f"{rounder} | {code}": (ROUNDERS[rounder], CODES[code])
    for rounder, code in product(ROUNDERS, CODES)
    if (rounder not in COLUMN_BY_COLUMN or CODES[code].tile == (1, 1))
    and (rounder not in ONE_SCALE or has_one_scale(CODES[code]))
    and (rounder not in LINEAR or linear_fields(CODES[code]))
    and (rounder not in BY_LEVELS or has_levels(CODES[code], (N, K)))
}
"""Rounders and codes that go together."""

ONE_OF_EACH_KIND = (
    "2 bits",
    "groups",
    "e8p",
    "vectors of outputs in groups",
    "levelled trellis",
    "nf3, six-bit scales",
    "low-rank tables",
    "two planes",
    "mixed widths",
    "toy: squares",
)
ONE_OF_EACH_WAY = ("nearest", "ldlq")
FEWER_PAIRS = {
    name: pair
    for name, pair in PAIRS.items()
    if name.partition(" | ")[0] in ONE_OF_EACH_WAY or name.partition(" | ")[2] in ONE_OF_EACH_KIND
}
"""Every rounder and every code, each with a few of the others: for what is too slow to try on all pairs."""
