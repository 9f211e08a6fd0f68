"""Methods on integer grids that differ from OPTQ in how codes are chosen: QuantEase, GPFQ, MagR, unbiased OPTQ, beams.

All store what `optq` stores. b bits, g columns a group or K for a whole row.
"""

from dataclasses import replace

from lowbit.codes import HessianRange, IntegerGrid
from lowbit.core.errors import require
from lowbit.core.parts import Rounder
from lowbit.core.recipe import Recipe, Refresh
from lowbit.recipes.scalar import GroupSize, RangeName, optq, whole_row
from lowbit.rounding import Beam, CoordinateDescent, Gpfq, Ldlq, MagR, QuantEase, RefittedTables, Stochastic
from lowbit.statistics import CrossMoment
from lowbit.transforms import StaticOrder

# MagR's strength by bits and whether scales are of rows; the best of a sweep on real layers (docs/LOG.md).
_STRENGTH = {1: 0.1, 2: 0.05, 3: 0.02}
_LEAST_STRENGTH = 0.01
# Of coordinate descent and of conjugate gradients in a turn of `integers`.
_PASSES, _STEPS = 3, 2


def quantease(
    bits: int = 3,
    group_size: GroupSize = "row",
    sweeps: int = 30,
    act_order: bool = True,
    range: RangeName = "minmax",
    refresh: Refresh = "input",
) -> Recipe:
    """QuantEase: coordinate descent from the weights, every third sweep off the grid.

    Paper: Behdin, Acharya, Gupta, Song, Zhu, Keerthi, Mazumder: QuantEase: Optimization-based Quantization for
    Language Models, arXiv 2309.01885.

    Bits per weight: as `optq` with static groups: b + (16 + b) / g.

    Differs from the authors' code: each row keeps the best answer met on the grid, not the last; scales are fitted to
    the original weights. The variant with outliers is `quantease_outlier`.

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        sweeps: over all columns; 30 in the paper.
        act_order: sweep the columns with the largest diag(H) first.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, False, act_order, True, range=range, refresh=refresh)
    return replace(base, name="quantease", rounder=QuantEase(sweeps))


def gpfq(
    bits: int = 4,
    group_size: GroupSize = "row",
    symmetric: bool = False,
    act_order: bool = True,
    range: RangeName = "minmax",
    refresh: Refresh = "input",
) -> Recipe:
    """GPFQ: each column makes up for the outputs' error so far, and the columns after it do not adapt.

    Papers: Lybrand and Saab: A Greedy Algorithm for Quantizing Neural Networks, arXiv 2010.15979; Zhang, Zhou, Saab:
    Post-training Quantization for Neural Networks with Provable Guarantees, arXiv 2201.11113.

    Bits per weight: as `optq` with static groups: b + (16 + b) / g, symmetric b + 16 / g.

    Differs from the authors' code: works from second moments; the inputs are those of the quantized prefix on both
    sides (statistic=CrossMoment aims at the original outputs).

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        symmetric: zero is the middle level; stores no zero points.
        act_order: round the columns with the largest diag(H) first.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, symmetric, act_order, True, range=range, refresh=refresh)
    return replace(base, name="gpfq", rounder=Gpfq())


def optq_stochastic(
    bits: int = 4,
    group_size: GroupSize = "row",
    symmetric: bool = False,
    act_order: bool = False,
    damping: float = 0.01,
    seed: int = 0,
    refresh: Refresh = "input",
) -> Recipe:
    """OPTQ with unbiased rounding: twice the squared error, but no single output errs by much.

    Paper: Zhang, Zhang, Colbert, Saab: Provable Post-Training Quantization: Theoretical Analysis of OPTQ and Qronos,
    arXiv 2508.04853.

    Bits per weight: as `optq` with static groups: b + (16 + b) / g, symmetric b + 16 / g.

    Differs from the paper: grids are finite, and aims beyond them are clamped.

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        symmetric: zero is the middle level; stores no zero points.
        act_order: round the columns with the largest diag(H) first.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        seed: of the random numbers, >= 0; layers of one shape share them.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, symmetric, act_order, True, damping, refresh=refresh)
    return replace(base, name="optq_stochastic", rounder=Stochastic(Ldlq(damping), seed))


def magr(
    bits: int = 2,
    strength: float | None = None,
    passes: int = 10,
    act_order: bool = True,
    damping: float = 0.01,
    range: RangeName = "minmax",
    refresh: Refresh = "input",
) -> Recipe:
    """MagR: shrink the largest weights of each row where the outputs allow it, round by OPTQ, polish.

    Paper: Zhang, Li, Zhang, Li, Yin: MagR: Weight Magnitude Reduction for Enhancing Post-Training Quantization,
    NeurIPS 2024, arXiv 2406.00800.

    Bits per weight: as `optq` with scales of rows: b + (16 + b) / K.

    Differs from the authors' code: the strength is relative to the weights; the grid is fitted to the shrunk weights as
    they are, where theirs is narrowed by 0.8 at 2 bits and 0.9 at 3 (take range="mse" or "hessian" for that); the
    polishing is not damped.

    Args:
        bits: 1 to 8.
        strength: alpha over the root mean square of a layer's weights; None for 0.05 at 2 bits, 0.02 at 3 and 0.01
            above. The paper's 0.001 is about 0.05 for LLaMA's weights.
        passes: of coordinate descent towards the original weights; 0 for none. The paper makes 30 at 2 bits.
        act_order: round the columns with the largest diag(H) first.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, "row", False, act_order, True, damping, range, refresh)
    shrunk = MagR(Ldlq(damping), _STRENGTH.get(bits, _LEAST_STRENGTH) if strength is None else strength)
    return replace(base, name="magr", rounder=CoordinateDescent(shrunk, passes) if passes else shrunk)


def beam(
    bits: int = 3,
    group_size: GroupSize = "row",
    width: int = 16,
    passes: int = 5,
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """lowbit's own for integer grids: ranges and order by the factor of H, a beam of choices, coordinate descent.

    Bits per weight: as `optq` with static groups: b + (16 + b) / g.

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        width: survivors of each row; time grows with it, the loss falls by about 4 % for each doubling.
        passes: of coordinate descent after that; 0 for none.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    base = optq(bits, group_size, False, True, True, damping, refresh=refresh)
    code = IntegerGrid(bits, "row" if group_size == -1 else group_size, range=HessianRange(), scales="static")
    search = Beam(width, damping=damping)
    rounder = CoordinateDescent(search, passes) if passes else search
    return replace(base, name="beam", transform=StaticOrder("pivot"), code=code, rounder=rounder)


def integers(
    bits: int = 4,
    group_size: GroupSize = 128,
    symmetric: bool = False,
    width: int = 16,
    turns: int = 2,
    target_damping: float = 1e-3,
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """lowbit's own for runtimes that want integers: all that helps and is stored as `optq` stores it.

    Aims at the original outputs, as Qronos does; finds ranges and the order of columns by the factor of H; searches by
    beam; then codes, by coordinate descent, and scales, by least squares for those codes, take turns. Nothing else is
    stored, so GPTQ, AWQ and compressed-tensors files hold the very same values.

    On the model that ships, in groups of 64 at 2, 3 and 4 bits, KL is 42, 30 and 22 % below that of `optq` with
    act-order and 13, 12 and 11 % below that of `qronos` with searched ranges, the next best (docs/LOG.md has other
    models and what each part gives). The run takes three to six times that of `optq`; without the search (width=1) KL
    at 2 bits is 7 % higher.

    Bits per weight: as `optq` with static groups: b + (16 + b) / g, symmetric b + 16 / g.

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        symmetric: zero is the middle level; stores no zero points.
        width: survivors of each row in the search; 1 for none.
        turns: of coordinate descent and scales; 0 for none.
        target_damping: of the target, see `qronos`.
        damping: of rounding: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    require(turns >= 0, f"integers(turns={turns}): must not be negative. Use 2.")
    code = IntegerGrid(bits, whole_row(group_size), symmetric, HessianRange(damping=damping), "static")
    rounder: Rounder = Beam(width, damping=damping)
    for _ in range(turns):
        rounder = RefittedTables(CoordinateDescent(rounder, _PASSES), _STEPS)
    return Recipe("integers", CrossMoment(target_damping), StaticOrder("pivot"), code, rounder, refresh=refresh)
