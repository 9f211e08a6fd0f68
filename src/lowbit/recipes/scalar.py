"""Methods on integer grids: round to nearest, and OPTQ."""

from typing import Literal

from lowbit.codes import HessianRange, IntegerGrid, MinMax, SearchedRange
from lowbit.codes.ranges import Range
from lowbit.core.errors import BadRequest
from lowbit.core.parts import Transform
from lowbit.core.recipe import Recipe, Refresh
from lowbit.rounding import Ldlq, Nearest
from lowbit.statistics import Isotropic, SecondMoment
from lowbit.transforms import ActOrder, NoTransform, StaticOrder

GroupSize = int | Literal["row", "tensor"]
RangeName = Literal["minmax", "mse", "hessian"]


def rtn(bits: int = 4, group_size: GroupSize = "row", symmetric: bool = False, range: RangeName = "minmax") -> Recipe:
    """Round each weight to the nearest level of its row's (or group's) integer grid.

    The baseline: no calibration data, except for `range="hessian"`, seconds for any model.

    Bits per weight: b + (16 + b) / g, symmetric b + 16 / g; g is the group size, or the row length for "row".

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        symmetric: zero is the middle level; stores no zero points.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
    """
    statistic = SecondMoment() if range == "hessian" else Isotropic()
    code = IntegerGrid(bits, whole_row(group_size), symmetric, range_named(range), scales="static")
    return Recipe("rtn", statistic, NoTransform(), code, Nearest(), refresh="block")


def optq(
    bits: int = 4,
    group_size: GroupSize = "row",
    symmetric: bool = False,
    act_order: bool = False,
    static_groups: bool = False,
    damping: float = 0.01,
    range: RangeName = "minmax",
    refresh: Refresh = "input",
) -> Recipe:
    """OPTQ (GPTQ): round column by column and let the columns not yet rounded absorb the error.

    Also by the name "gptq".

    Paper: Frantar, Ashkboos, Hoefler, Alistarh: OPTQ: Accurate Quantization for Generative Pre-trained Transformers,
    ICLR 2023, arXiv 2210.17323.

    Bits per weight: b + (16 + b) / g, symmetric b + 16 / g; act_order with groups that are not static adds
    ceil(log2 K) / N for the stored order of the K inputs.

    Differs from the authors' code: solved as LDLQ (the same codes, one factorisation instead of three, in float64);
    scales are rounded to float16 before they are used; inputs that never fire keep their weights; a Hessian that is
    not positive definite is damped more, and the report says so.

    Args:
        bits: 1 to 8.
        group_size: columns of a row that share a scale; "row" or -1 for the whole row, "tensor" for the whole layer.
        symmetric: zero is the middle level; stores no zero points.
        act_order: round the columns with the largest diag(H) first.
        static_groups: estimate every group's scale from the original weights, before rounding starts.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        range: end points by "minmax", by searched mean error ("mse", |error|^2.4), or weighted by the "hessian".
        refresh: "input" recomputes inputs after each group of layers that share one (the paper's true-sequential
            order), "block" once per decoder block, faster and slightly less exact.
    """
    group_size = whole_row(group_size)
    scales: Literal["dynamic", "static"] = "static" if static_groups else "dynamic"
    code = IntegerGrid(bits, group_size, symmetric, range_named(range), scales)
    transform: Transform = NoTransform()
    if act_order:
        transform = StaticOrder() if code.refit_every == 0 else ActOrder()
    return Recipe("optq", SecondMoment(), transform, code, Ldlq(damping), refresh=refresh)


def whole_row(group_size: GroupSize) -> GroupSize:
    """The group size, -1 meaning the whole row, as elsewhere in the field."""
    return "row" if group_size == -1 else group_size


def range_named(name: RangeName) -> Range:
    """The range of that name, with its usual settings."""
    ranges: dict[str, Range] = {"minmax": MinMax(), "mse": SearchedRange(), "hessian": HessianRange()}
    if name not in ranges:
        raise BadRequest(f"range={name!r}: must be one of {', '.join(ranges)}.")
    return ranges[name]
