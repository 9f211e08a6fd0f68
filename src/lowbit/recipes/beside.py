"""Methods that keep something beside the codes: columns, sparse outliers, or a low-rank correction.

Each is OPTQ or rounding to nearest with a side-car, so all their settings mean the same. K inputs, N outputs; g is the
group size, or K for "row"; an index of the K inputs takes i = ceil(log2 K) bits.
"""

from dataclasses import replace
from typing import Literal

from lowbit.codes import Bilevel
from lowbit.core.parts import Transform
from lowbit.core.recipe import Recipe, Refresh
from lowbit.recipes.floats import normal_float
from lowbit.recipes.scalar import GroupSize, RangeName, optq
from lowbit.rounding import CoordinateDescent, Ldlq, Nearest
from lowbit.sidecars import (
    HardThresholding,
    KeptColumns,
    LowRank,
    Magnitude,
    RoundingCost,
    Sensitivity,
    SparseOutliers,
)
from lowbit.statistics import FisherDiagonal, Isotropic, SecondMoment
from lowbit.transforms import ActOrder, NoTransform


def owq(
    bits: int = 3,
    extra_bits: float = 0.01,
    group_size: GroupSize = "row",
    act_order: bool = False,
    damping: float = 0.01,
    range: RangeName = "mse",
    refresh: Refresh = "input",
) -> Recipe:
    """OWQ: the few columns whose inputs are huge stay in float16, and answer for the errors of the others.

    Paper: Lee, Jin, Kim, Kim, Park: OWQ: Outlier-Aware Weight Quantization for Efficient Fine-Tuning and Inference of
    Large Language Models, AAAI 2024, arXiv 2306.02272.

    Bits per weight: b + (16 + b) / g + c (16 / K + i / (N K)) for c columns, the most that extra_bits allows, and at
    least one.

    Differs from the authors' code: each layer gets the same bits per weight, where theirs get the same bits; the kept
    columns' codes are stored too (b c / K); the Hessian is damped once the kept columns are eliminated.

    Args:
        bits: 1 to 8.
        extra_bits: bits per weight for kept columns; the paper's 3.01 bits are 3 and 0.01.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        act_order: round the columns with the largest diag(H) first; groups then keep their first scales.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, False, act_order, act_order, damping, range, refresh)
    return replace(base, name="owq", side_car=KeptColumns(base.code, extra_bits))


def quantease_outlier(
    bits: int = 3,
    fraction: float = 0.01,
    turns: int = 4,
    passes: int = 4,
    group_size: GroupSize = "row",
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """QuantEase's outlier-aware variant: coordinate descent for the codes, hard thresholding for sparse outliers.

    Paper: Behdin, Acharya, Gupta, Keerthi, Mazumder: QuantEase: Optimization-based Quantization for Language Models,
    2023, arXiv 2309.01885.

    Bits per weight: b + (16 + b) / g + f (16 + i) + ceil(log2(K + 1)) / K, f the fraction of outliers.

    Differs from the paper: codes start from OPTQ's in each turn; outliers are refitted after they are chosen (see
    `sidecars.thresholding`); the best turn is kept.

    Args:
        bits: 1 to 8.
        fraction: of the weights that are kept apart, above 0 to 1.
        turns: of rounding and choosing outliers anew.
        passes: of coordinate descent in a turn, at most.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, damping=damping, refresh=refresh)
    side_car = HardThresholding(SparseOutliers(Magnitude(), fraction), turns)
    rounder = CoordinateDescent(Ldlq(damping), passes)
    return replace(base, name="quantease_outlier", rounder=rounder, side_car=side_car)


def spqr(
    bits: int = 3,
    fraction: float = 0.01,
    group_size: int = 16,
    scale_bits: int = 3,
    scale_groups: int = 16,
    act_order: bool = True,
    damping: float = 1.0,
    refresh: Refresh = "input",
) -> Recipe:
    """SpQR: small groups whose scales are quantized too, and the weights that rounding hurts most kept apart.

    Paper: Dettmers, Svirschevski, Egiazarian, Kuznedelev, Frantar, Ashkboos, Borzunov, Hoefler, Alistarh: SpQR: A
    Sparse-Quantized Representation for Near-Lossless LLM Weight Compression, ICLR 2024, arXiv 2306.03078.

    Bits per weight: b + 2 c / g + 32 / (g n) + f (16 + i) + ceil(log2(K + 1)) / K, c bits a scale, n groups that share
    units, f the fraction of outliers; act_order adds i / N. At [4096, 4096] that is 3.79, the paper's 3.94.

    Differs from the authors' code: scales and minima that share a float16 unit are those of a row's groups, where
    theirs are of 16 rows and have a zero point, too, and they are searched with costs by column; a fixed fraction of
    outliers, chosen before rounding by their own cost, with values refitted afterwards.

    Args:
        bits: 1 to 8.
        fraction: of the weights that are kept apart, above 0 to 1.
        group_size: columns of a row that share a scale and a minimum.
        scale_bits: of a scale and of a minimum, 1 to 8.
        scale_groups: groups that share units, at most: the largest number that divides the groups of a row.
        act_order: round the columns with the largest diag(H) first.
        damping: added to diag(H), as a fraction of its mean; >= 0. The paper's 1 steadies small groups.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = Bilevel(bits, group_size, scale_bits, scale_groups)
    transform: Transform = ActOrder() if act_order else NoTransform()
    side_car = SparseOutliers(RoundingCost(code, group_size), fraction)
    return Recipe("spqr", SecondMoment(), transform, code, Ldlq(damping), side_car, refresh)


def easyquant(bits: int = 4, fraction: float = 0.0027, group_size: GroupSize = "row") -> Recipe:
    """EasyQuant: without any data; the largest weights kept apart, the range searched for the others.

    Paper: Tang, Sun, Wu, Liu, Zhu, Kang: EasyQuant: An Efficient Data-free Quantization Algorithm for LLMs, EMNLP 2023,
    arXiv 2403.02775.

    Bits per weight: b + 16 / g + f (16 + i) + ceil(log2(K + 1)) / K, f the fraction of outliers.

    Differs from the paper: a fixed fraction, where theirs is what lies beyond 3 standard deviations (0.27 % of a
    Gaussian, our default); the range by search, not by gradient descent, for the mean of |error|^2.4, not of its
    square; all 2^b levels are used.

    Args:
        bits: 1 to 8.
        fraction: of the weights that are kept apart, above 0 to 1.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
    """
    base = optq(bits, group_size, symmetric=True, range="mse", static_groups=True, refresh="block")
    side_car = SparseOutliers(Magnitude(), fraction)
    return replace(base, name="easyquant", statistic=Isotropic(), rounder=Nearest(), side_car=side_car)


def gwq(
    bits: int = 3,
    fraction: float = 0.01,
    group_size: GroupSize = 16,
    range: RangeName = "minmax",
    refresh: Refresh = "input",
) -> Recipe:
    """GWQ: the weights with the largest gradients stay in float16, all others are rounded to nearest in small groups.

    Paper: Shao, Gu, Chen, et al.: GWQ: Gradient-Aware Weight Quantization for Large Language Models, 2024, arXiv
    2411.00850.

    Bits per weight: b + (16 + b) / g + f (16 + i) + ceil(log2(K + 1)) / K, f the fraction of outliers.

    Differs from the paper (no code is public): root mean square gradients of all calibration windows, where theirs is
    the magnitude in one (--samples 1 is that); the fraction is that of each layer; scales are float16; the outliers'
    values are refitted to the layer's outputs.

    Args:
        bits: 1 to 8.
        fraction: of the weights that are kept apart, above 0 to 1.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, static_groups=True, range=range, refresh=refresh)
    side_car = SparseOutliers(Sensitivity(), fraction)
    return replace(base, name="gwq", statistic=FisherDiagonal(), rounder=Nearest(), side_car=side_car)


def lorc(
    bits: int = 4,
    rank: int = 8,
    metric: Literal["identity", "diagonal", "hessian"] = "identity",
    dtype: Literal["float16", "int8"] = "int8",
    group_size: GroupSize = "row",
    symmetric: bool = False,
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """LoRC: OPTQ, and the leading singular vectors of what it got wrong.

    Paper: Yao, Wu, Li, Youn, He: ZeroQuant-V2: Exploring Post-training Quantization in LLMs from Comprehensive Study to
    Low Rank Compensation, 2023, arXiv 2303.08302.

    Bits per weight: b + (16 + b) / g, symmetric b + 16 / g, and 8 r (N + K + 4) / (N K) with int8 factors, 16 r (N + K)
    / (N K) with float16 ones.

    Differs from the authors' code: int8 factors have a scale for each singular vector; factors that would raise the
    proxy loss are left at zero.

    Args:
        bits: 1 to 8.
        rank: of the correction, r.
        metric: the errors that count: "identity" for those of the weights (the paper's), "hessian" for those of the
            outputs, which costs nothing more and is better, "diagonal" for weights times diag(H).
        dtype: of the factors, "int8" or "float16".
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        symmetric: zero is the middle level; stores no zero points.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, symmetric, damping=damping, refresh=refresh)
    return replace(base, name="lorc", side_car=LowRank(rank, metric, dtype, first="codes"))


def lq_lora(
    bits: int = 3,
    rank: int = 8,
    turns: int = 8,
    metric: Literal["identity", "diagonal", "hessian", "fisher"] = "diagonal",
    dtype: Literal["float16", "int8"] = "float16",
    group_size: int = 64,
    refresh: Refresh = "input",
) -> Recipe:
    """LQ-LoRA's decomposition: NormalFloat codes and low-rank factors take turns, the best turn is kept.

    Paper: Guo, Greengard, Xing, Kim: LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for Efficient Language Model
    Finetuning, ICLR 2024, arXiv 2311.12023.

    Bits per weight: b + 8 / g + 16 / K + 16 r (N + K) / (N K), 8 r (N + K + 4) / (N K) for int8 factors.

    Differs from the authors' code: double quantization as in `normal_float`; weights of the errors from diag(H) unless
    the metric is "fisher", as theirs; all turns are taken and the best is that of the least proxy loss, where theirs
    stop at the first whose weighted error is larger. Finetuning and the choice of bits are left out.

    Args:
        bits: 2 to 8.
        rank: of the correction, r; 64 in the paper.
        turns: of rounding and factoring.
        metric: the errors that count: "identity" for those of the weights, "fisher" for those of rows and columns that
            the loss minds (the paper's data-aware variant; takes a backward pass of the whole model), "diagonal" for
            weights times diag(H), its like without gradients, "hessian" for those of the outputs.
        dtype: of the factors, "float16" or "int8".
        group_size: columns of a row that share a scale; the paper takes 64.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    statistic = FisherDiagonal() if metric == "fisher" else SecondMoment()
    side_car = LowRank(rank, metric, dtype, turns)
    base = normal_float(bits, group_size)
    return replace(base, name="lq_lora", statistic=statistic, side_car=side_car, refresh=refresh)
