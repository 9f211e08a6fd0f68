"""Methods whose levels are a fixed set, scaled: floats of few bits, NormalFloat, dINT, powers, ternary, MX and NV.

g is the group size, or K for "row"; K inputs, N outputs.
"""

from typing import Literal

from lowbit.codes import Digits, LaidOut, Lookup, MinMax, Planes, ScaledLevels, Scales, SearchedRange
from lowbit.core.errors import BadRequest, require
from lowbit.core.recipe import Recipe, Refresh
from lowbit.recipes.scalar import GroupSize, RangeName, range_named, whole_row
from lowbit.rounding import Ldlq, Nearest
from lowbit.statistics import Isotropic, SecondMoment
from lowbit.transforms import NoTransform

BlockFormat = Literal["mxfp4", "mxfp6", "mxfp6_e2m3", "nvfp4"]


def llm_fp4(bits: int = 4, group_size: GroupSize = "row", range: RangeName = "hessian") -> Recipe:
    """LLM-FP4: floats of few bits; the split in exponent and mantissa and each row's scale are searched.

    Paper: Liu, Liu, Huang, Dong, Cheng: LLM-FP4: 4-Bit Floating-Point Quantized Transformers, EMNLP 2023, arXiv
    2310.16836.

    Bits per weight: b + 16 / g + 8 / (N K).

    Differs from the authors' code: weights only; a candidate's cost is its squared error weighted by column instead of
    the layer's output error; scales shrink to a fifth of the range and never grow.

    Args:
        bits: 3 to 8, of them one for the sign.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        range: how scales are found: "minmax", by searched mean error ("mse"), or weighted by the "hessian".
    """
    require(isinstance(bits, int) and 3 <= bits <= 8, f"llm_fp4(bits={bits!r}): must be 3 to 8.")
    splits = tuple(f"e{exponent}m{bits - 1 - exponent}" for exponent in (1, 2, 3, 4, 5) if exponent < bits)
    statistic = SecondMoment() if range == "hessian" else Isotropic()
    code = Lookup(ScaledLevels(splits, range=range_named(range)), whole_row(group_size), "static")
    return Recipe("llm_fp4", statistic, NoTransform(), code, Nearest(), refresh="block")


def zeroquant_fp6(group_size: GroupSize = "row") -> Recipe:
    """ZeroQuant(4+2): six-bit floats, rounded to nearest, stored as four bits and two.

    Paper: Wu, Xia, Youn et al.: ZeroQuant(4+2): Redefining LLMs Quantization with a New FP6-Centric Strategy for
    Diverse Generative Tasks, 2023, arXiv 2312.08583; kernel: FP6-LLM, arXiv 2401.14112.

    Bits per weight: 6 + 16 / g.

    Differs from the kernel's code: nothing is truncated, and the two planes are in plain order, not in that of Tensor
    Core fragments.

    Args:
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
    """
    code = LaidOut(Lookup(ScaledLevels("e3m2"), whole_row(group_size), "static"), Planes(4, 2))
    return Recipe("zeroquant_fp6", Isotropic(), NoTransform(), code, Nearest(), refresh="block")


def normal_float(bits: int = 4, group_size: int = 64, scales: Literal["float16", "double"] = "double") -> Recipe:
    """NF4 and its kin: quantiles of the normal distribution, with scales that are quantized too.

    Paper: Dettmers, Pagnoni, Holtzman, Zettlemoyer: QLoRA: Efficient Finetuning of Quantized LLMs, NeurIPS 2023, arXiv
    2305.14314.

    Bits per weight: b + 8 / g + 16 / K with double quantization, b + 16 / g with float16 scales.

    Differs from the authors' code: the second scale is a row's, where theirs is that of 256 groups; a group's is a
    whole number, where theirs is an 8-bit float after a mean is taken off.

    Args:
        bits: 2 to 8.
        group_size: columns of a row that share a scale; the paper takes 64.
        scales: "double" for 8 bits a group and one float16 a row, or "float16" for each group.
    """
    stored = {"double": Scales("uint8", "row"), "float16": Scales()}
    require(scales in stored, f'normal_float(scales={scales!r}): must be "float16" or "double".')
    code = Lookup(ScaledLevels(f"nf{bits}", stored[scales]), group_size, "static")
    return Recipe("normal_float", Isotropic(), NoTransform(), code, Nearest(), refresh="block")


def block_float(
    format: BlockFormat = "mxfp4",
    block_size: int | None = None,
    range: RangeName = "mse",
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """Block formats of recent hardware, rounded with feedback: MXFP4, MXFP6 (e3m2 or e2m3) and NVFP4.

    Sources: OCP Microscaling Formats 1.0 (arXiv 2310.10537); NVFP4 as in NVIDIA's Blackwell documents.

    Bits per weight: b + 8 / 32 for the MX formats, whose blocks of 32 have a power of two; 4 + 8 / 16 + 32 / (N K) for
    NVFP4, whose blocks of 16 have an e4m3 scale times one float32.

    Differs: block scales are searched unless range is "minmax"; MX scales then are those of OCP for e2m1.

    Args:
        format: one of those above.
        block_size: columns of a row that share a scale, where it should not be the format's own.
        range: how block scales are found: "minmax", by searched mean error ("mse"), or weighted by the "hessian".
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    power, small = Scales("e8m0"), Scales("e4m3", "tensor")
    formats = {"mxfp4": ("e2m1", power), "mxfp6": ("e3m2", power), "mxfp6_e2m3": ("e2m3", power)}
    formats["nvfp4"] = ("e2m1", small)
    if format not in formats:
        raise BadRequest(f"block_float(format={format!r}): must be one of {', '.join(formats)}.")
    (levels, scales), own_size = formats[format], 16 if format == "nvfp4" else 32
    code = Lookup(ScaledLevels(levels, scales, range_named(range)), block_size or own_size)
    return Recipe("block_float", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)


def dint(
    bits: int = 4,
    group_size: GroupSize = "row",
    range: RangeName = "minmax",
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """dINT: an integer grid that gives two of its levels for halves around zero, rounded by OPTQ.

    Paper: Lee, Kim, Baek, Hwang, Sung, Choi: Enhancing Computation Efficiency in Large Language Models through Weight
    and Activation Quantization, EMNLP 2023, arXiv 2311.05161.

    Bits per weight: b + 16 / g.

    Differs from the paper: the scale may be negative where the longer side is the positive one, in place of a zero
    point; AQAS's scaling is a transform, SLAC's choice of lengths is `--calibration`.

    Args:
        bits: 2 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        range: how scales are found: "minmax", by searched mean error ("mse"), or weighted by the "hessian".
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = Lookup(ScaledLevels(f"dint{bits}", range=range_named(range)), whole_row(group_size))
    return Recipe("dint", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)


def nupes(bits: int = 4, group_size: GroupSize = "row") -> Recipe:
    """PowerQuant, NUPES without learning: levels equidistant after raising to a power that each layer chooses.

    Papers: Yvinec, Dapogny, Cord, Bailly: PowerQuant, ICLR 2023, arXiv 2301.09858; NUPES, arXiv 2308.05600.

    Bits per weight: b + 16 / g + 8 / (N K).

    Differs from the papers: levels are the nearest ones, not the nearest after raising to the power; the power is one
    of 0.3, 0.35, .. 1; codes are not learned.

    Args:
        bits: 2 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
    """
    require(isinstance(bits, int) and 2 <= bits <= 8, f"nupes(bits={bits!r}): must be 2 to 8.")
    powers = tuple(f"power{bits}:{percent / 100:.2f}" for percent in (*_POWERS, 100))
    code = Lookup(ScaledLevels(powers, range=MinMax()), whole_row(group_size), "static")
    return Recipe("nupes", Isotropic(), NoTransform(), code, Nearest(), refresh="block")


_POWERS = tuple(range(30, 100, 5))


def ternary(group_size: GroupSize = 128, damping: float = 0.01, refresh: Refresh = "input") -> Recipe:
    """Ternary weights: -1, 0 or 1 times a scale, five of them in a byte, rounded with feedback.

    Paper: Li, Liu, Wang, Zhang, Yan: Ternary Weight Networks, 2016, arXiv 1605.04711, for the levels and their fit.

    Bits per weight: 1.6 + 16 / g.

    Differs from the paper: nothing is trained; scales minimise the squared error by search; rounding is OPTQ's.

    Args:
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    levels = ScaledLevels("ternary", range=SearchedRange(0.1, 60, 2.0))
    code = LaidOut(Lookup(levels, whole_row(group_size)), Digits(3))
    return Recipe("ternary", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)
