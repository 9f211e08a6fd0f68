"""Rows of the tables for codes that look levels up, and for the methods made of them."""

from lowbit.codes import (
    BinaryCoding,
    BlockScaled,
    ClusteredLevels,
    Digits,
    DualGrained,
    Exchanged,
    HessianRange,
    KQuant,
    LaidOut,
    LeastSquares,
    Lookup,
    LowRankLevels,
    MixedWidths,
    PartialBinary,
    Planes,
    ScaledLevels,
    Scales,
    SearchedRange,
    SharedLevels,
    SuperBlocks,
    TwoStep,
    VectorCodebook,
)

_SEARCHED = SearchedRange(steps=12, exponent=2.0)

LOOKUPS = {
    "nf4 in groups": Lookup(ScaledLevels(), 8),
    "e3m2 a row": Lookup(ScaledLevels("e3m2")),
    "floats to choose from": Lookup(ScaledLevels(("e1m2", "e2m1", "e3m0"), range=HessianRange(steps=12))),
    "powers to choose from in groups": Lookup(ScaledLevels(("power3:0.5", "power3:1"), choice="group"), 8),
    "dint4 in static groups": Lookup(ScaledLevels("dint4", Scales("bfloat16")), 8, "static"),
    "ternary": Lookup(ScaledLevels("ternary", range=_SEARCHED), "tensor"),
    "binary": Lookup(ScaledLevels("binary", range=_SEARCHED), 12),
    "levels on one side": Lookup(ScaledLevels("0, 1, 2, 3"), 8),
    "mxfp4": Lookup(ScaledLevels("e2m1", Scales("e8m0")), 8),
    "nvfp4": Lookup(ScaledLevels("e2m1", Scales("e4m3", "tensor")), 8),
    "nf3, six-bit scales": Lookup(ScaledLevels("nf3", Scales("uint6", "row")), 8),
    "clusters of a row": Lookup(ClusteredLevels(3)),
    "clusters of groups": Lookup(ClusteredLevels(2, "conditional"), 8),
    "two tables for all rows": Lookup(SharedLevels(3, 2)),
    "low-rank tables": Lookup(LowRankLevels(2, 2), 8),
    "low-rank tables, static": Lookup(LowRankLevels(3, 1, importance="none"), 8, "static"),
    "two planes": Lookup(BinaryCoding(2), 8),
    "planes with signs": Lookup(BinaryCoding(2, "signs", LeastSquares(4), "conditional"), 8),
    "planes on a finer grid": Lookup(BinaryCoding(2, "signs", TwoStep(3, 4, 6), "diagonal")),
    "super-blocks": Lookup(SuperBlocks(3, 4, 3, steps=6), 4),
    "super-blocks, symmetric": Lookup(SuperBlocks(2, 6, 2, True, "diagonal", steps=6), 4, "static"),
    "dual-grained": Lookup(DualGrained(steps=10), 8),
    "dual-grained, static": Lookup(DualGrained(2, range=_SEARCHED, steps=10), 4, "static"),
}

LAID_OUT = {
    "pairs with scales of blocks": BlockScaled(VectorCodebook(2, 4, importance="none"), 4),
    "clusters with scales of blocks": BlockScaled(Lookup(ClusteredLevels(2), 8), 4, 3),
    "fp6 in two planes": LaidOut(Lookup(ScaledLevels("e3m2")), Planes(4, 2)),
    "ternary digits": LaidOut(Lookup(ScaledLevels("ternary", range=_SEARCHED), 12), Digits(3)),
    "mixed widths": LaidOut(Lookup(MixedWidths(2, HessianRange(steps=5)), 8), Exchanged(2)),
    "partly binary": PartialBinary(0.2, 8),
    "partly binary, by magnitude": PartialBinary(0.1, "row", "none"),
    "mixed widths, static": LaidOut(Lookup(MixedWidths(3, HessianRange(steps=5)), 12, "static"), Exchanged(3)),
}

LOOKUP_PARTS = [
    *(code.tables for code in LOOKUPS.values()),
    *(code.layout for code in LAID_OUT.values() if isinstance(code, LaidOut)),
    MixedWidths(),
    *(Scales(), LeastSquares(), TwoStep(), KQuant()),
]

LOOKUP_RECIPES = {
    "llm_fp4": {},
    "llm_fp4 3 bits in groups": {"bits": 3, "group_size": 8, "range": "minmax"},
    "zeroquant_fp6": {},
    "normal_float": {"group_size": 8},
    "normal_float 3 bits": {"bits": 3, "group_size": 12, "scales": "float16"},
    "block_float": {"block_size": 8},
    "block_float nvfp4": {"format": "nvfp4", "block_size": 12, "range": "minmax"},
    "dint": {},
    "nupes": {},
    "ternary": {"group_size": 8},
    "squeezellm": {},
    "jlcm": {"tables": 3},
    "lcq": {"group_size": 12},
    "gptvq": {"bits": 1, "group_size": 12},
    "gptvq with scales of blocks": {"bits": 1, "group_size": 12, "block_size": 4},
    "vptq": {"dimension": 2, "bits": 3, "residual_bits": 2},
    "gptqt": {"bits": 2, "fine_bits": 3},
    "db_llm": {"group_size": 12},
    "pb_llm": {"group_size": 12},
    "dgq": {"group_size": 8},
    "slim_llm": {"group_size": 8},
}
"""Settings that fit the [6, 24] layers of `laws.problems`; the first word is the recipe's name."""
