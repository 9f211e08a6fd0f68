"""Methods whose codes are planes of bits: GPTQT, DB-LLM, PB-LLM.

g is the group size, or K for "row"; K inputs, N outputs.
"""

from lowbit.codes import BinaryCoding, LeastSquares, Lookup, PartialBinary, TwoStep
from lowbit.core.recipe import Recipe, Refresh
from lowbit.recipes.scalar import GroupSize, whole_row
from lowbit.rounding import Ldlq
from lowbit.statistics import SecondMoment
from lowbit.transforms import NoTransform


def gptqt(
    bits: int = 3,
    group_size: GroupSize = "row",
    fine_bits: int = 5,
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """GPTQT: levels chosen from a finer integer grid so that they are sums of binary planes, rounded by OPTQ.

    Paper: Guo, Lang, Ren: GPTQT: Quantize Large Language Models Twice to Push the Efficiency, 2024, arXiv 2407.02891.

    Bits per weight: b + 16 (b + 1) / g.

    Differs from the paper (no code is public): which levels a group takes is judged by its rounding costs, column by
    column; the sets that groups choose from are narrowed down for the layer on a sample.

    Args:
        bits: planes, 1 to 6.
        group_size: columns of a row that share levels; "row" or -1 for the whole row, "tensor" for the whole layer.
        fine_bits: of the first grid, at least bits and at most 6; the same as bits for the uniform grid alone.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    planes = BinaryCoding(bits, "signs", TwoStep(fine_bits), "conditional")
    code = Lookup(planes, whole_row(group_size), "static")
    return Recipe("gptqt", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)


def db_llm(bits: int = 2, group_size: GroupSize = 64, damping: float = 0.01, refresh: Refresh = "input") -> Recipe:
    """DB-LLM: planes of zeros and ones with a scale each, so that a zero is always among the levels.

    Paper: Chen, Lv, Ding et al.: DB-LLM: Accurate Dual-Binarization for Efficient LLMs, ACL 2024, arXiv 2402.11960.

    Bits per weight: b + 16 b / g.

    Differs from the paper (no code is public): the planes' scales are the best ones for the weights in closed form,
    and codes are rounded with feedback; nothing is distilled.

    Args:
        bits: planes, 1 to 6; two in the paper.
        group_size: columns of a row that share scales; "row" or -1 for the whole row, "tensor" for the whole layer.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = Lookup(BinaryCoding(bits, "zero one", LeastSquares(), "conditional"), whole_row(group_size))
    return Recipe("db_llm", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)


def pb_llm(
    fraction: float = 0.1, group_size: GroupSize = 128, damping: float = 0.01, refresh: Refresh = "input"
) -> Recipe:
    """PB-LLM: the most salient weights at eight bits, the others one bit, rounded by OPTQ.

    Paper: Shang, Yuan, Wu, Dong: PB-LLM: Partially Binarized Large Language Models, ICLR 2024, arXiv 2310.00034.

    Bits per weight: 2 + 7 c / K + 32 / g + 32 / K for c = fraction x K salient weights a row; the paper leaves out the
    mask's bit.

    Differs from the authors' code: levels of the binary weights leave the salient ones out, where theirs count them as
    zeros, which makes levels too small; every row has the same share of salient weights; the salient ones' scales are
    float16; the mask is counted; nothing is trained.

    Args:
        fraction: of each row's weights that are salient, above 0 to 1.
        group_size: columns of a row that share levels; "row" or -1 for the whole row, "tensor" for the whole layer.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = PartialBinary(fraction, whole_row(group_size))
    return Recipe("pb_llm", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)
