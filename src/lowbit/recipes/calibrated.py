"""OPTQ with another idea of what a layer is for: Qronos, RSQ and BoA each replace its statistic and keep the rest."""

from dataclasses import replace
from typing import Literal

from lowbit.core.errors import require
from lowbit.core.recipe import Recipe, Refresh
from lowbit.recipes.scalar import GroupSize, RangeName, optq
from lowbit.statistics import (
    ActivationNorm,
    AttentionAware,
    AttentionReceived,
    CrossMoment,
    TokenRarity,
    Uniform,
    WeightedMoment,
)
from lowbit.statistics.importance import Importance
from lowbit.transforms import RandomizedHadamard

ImportanceName = Literal["attention", "norm", "rarity", "uniform"]
_IMPORTANCES: dict[str, Importance] = {
    "attention": AttentionReceived(),
    "norm": ActivationNorm(),
    "rarity": TokenRarity(),
    "uniform": Uniform(),
}


def qronos(
    bits: int = 4,
    group_size: GroupSize = "row",
    symmetric: bool = False,
    act_order: bool = True,
    static_groups: bool = True,
    target_damping: float = 1e-3,
    damping: float = 0.01,
    range: RangeName = "minmax",
    refresh: Refresh = "input",
) -> Recipe:
    """Qronos: correct what the layers before have spoilt, then round as OPTQ does.

    Paper: Zhang, Zhang, Colbert, Saab and others: Qronos: Correcting the Past by Shaping the Future in Post-Training
    Quantization, arXiv 2505.11695.

    Bits per weight: as `optq`: b + (16 + b) / g, symmetric b + 16 / g; act_order with groups that are not static adds
    ceil(log2 K) / N.

    Differs from the authors' code: the projection form, in which W' replaces W before the first column is rounded and
    not after it; scales are fitted to W', not to W; rounding is damped by 0.01 of diag(H), where theirs takes the
    target's damping (on small models, KL at 2 bits is up to 10 % lower for it). Takes a second run of the original
    blocks.

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        symmetric: zero is the middle level; stores no zero points.
        act_order: round the columns with the largest diag(H) first.
        static_groups: estimate every group's scale before rounding starts.
        target_damping: of the correction, as a fraction of H's largest eigenvalue: the paper's lambda, there 1e-6,
            which needs more calibration text (see `lowbit.statistics.cross_moment`).
        damping: of rounding: added to diag(H), as a fraction of its mean; >= 0.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, symmetric, act_order, static_groups, damping, range, refresh)
    return replace(base, name="qronos", statistic=CrossMoment(target_damping))


def rsq(
    bits: int = 4,
    group_size: GroupSize = "row",
    symmetric: bool = False,
    importance: ImportanceName = "attention",
    minimum: float = 0.005,
    damping: float = 0.01,
    range: RangeName = "mse",
    refresh: Refresh = "input",
) -> Recipe:
    """RSQ: rotate, scale tokens by how much attention they receive, quantize by OPTQ.

    Paper: Sung, Yadav, Li, Yoon, Bansal: RSQ: Learning from Important Tokens Leads to Better Quantized LLMs, ICML 2025,
    arXiv 2503.01820.

    Bits per weight: as `optq`, b + (16 + b) / g, symmetric b + 16 / g, and 1 / N for the rotation's signs.

    Differs from the authors' code: each layer's inputs are rotated on their own, by a randomized Hadamard transform
    that is stored with the layer, where theirs rotates the residual stream once and merges the norms; no cyclic shifts
    of the calibration text.

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        symmetric: zero is the middle level; stores no zero points.
        importance: which tokens matter: those that receive "attention", of large "norm", of "rarity", or all alike
            ("uniform").
        minimum: the weight of a window's least important token, over that of the most important one; 0 to 1.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, symmetric, damping=damping, range=range, refresh=refresh)
    require(importance in _IMPORTANCES, f"rsq(importance={importance!r}): must be one of {', '.join(_IMPORTANCES)}.")
    statistic = WeightedMoment(_IMPORTANCES[importance], minimum)
    return replace(base, name="rsq", statistic=statistic, transform=RandomizedHadamard(sides="right"))


def boa(
    bits: int = 4,
    group_size: GroupSize = "row",
    symmetric: bool = False,
    act_order: bool = False,
    static_groups: bool = False,
    damping: float = 0.01,
    range: RangeName = "hessian",
    refresh: Refresh = "block",
) -> Recipe:
    """BoA: queries, keys and values are rounded for what attention makes of them, with feedback between their rows.

    Paper: Kim and others: BoA: Attention-aware Post-training Quantization without Backpropagation, ICML 2025, arXiv
    2406.13474.

    Bits per weight: as `optq`: b + (16 + b) / g, symmetric b + 16 / g; act_order with groups that are not static adds
    ceil(log2 K) / N.

    Differs from the authors' code (read through TurboBoA and aespa, by the same group): the values' row Hessian is the
    paper's, where theirs is the identity, and their column Hessian is averaged over the heads; any map between a layer
    and its attention, not the rotary embeddings alone.

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        symmetric: zero is the middle level; stores no zero points.
        act_order: round the columns with the largest diag(H) first.
        static_groups: estimate every group's scale before rounding starts.
        damping: added to diag(H) and to diag(G), as a fraction of their means; >= 0.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, symmetric, act_order, static_groups, damping, range, refresh)
    return replace(base, name="boa", statistic=AttentionAware())
