"""Methods that choose how fine scales are, or where bits go inside a layer: DGQ, FineQuant, SliM-LLM.

g is the group size; K inputs, N outputs.
"""

from lowbit.codes import AdaptiveBlocks, DualGrained, Exchanged, HessianRange, LaidOut, Lookup, MixedWidths
from lowbit.core.errors import require
from lowbit.core.recipe import Recipe, Refresh
from lowbit.rounding import Ldlq, Nearest
from lowbit.statistics import Isotropic, SecondMoment
from lowbit.transforms import NoTransform


def dgq(bits: int = 4, group_size: int = 128, damping: float = 0.01, refresh: Refresh = "input") -> Recipe:
    """DGQ: whole-number scales of groups under one float scale a row, for products in 8-bit integers.

    Paper: Zhang, Fan, Tao, et al.: Dual Grained Quantization: Efficient Fine-Grained Quantization for LLM, 2023, arXiv
    2310.04836.

    Bits per weight: b + (8 + b) / g + 16 / K.

    Differs from the authors' code: weights only; both searches weigh squared errors by column, with all calibration
    data, where theirs measure the last batch; groups are estimated anew as rounding reaches them.

    Args:
        bits: 1 to 6.
        group_size: columns of a row that share a whole-number scale and a zero point.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = Lookup(DualGrained(bits, HessianRange(0.8, 20)), group_size)
    return Recipe("dgq", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)


def finequant(bits: int = 4, group_size: int = 64, finest: int = 16) -> Recipe:
    """FineQuant: without any data; blocks are fine where the range of the weights changes and coarse elsewhere.

    Paper: Kim, Henry, Fahim, Awadalla: FineQuant: Unlocking Efficiency with Fine-Grained Weight-Only Quantization for
    LLMs, 2023, arXiv 2308.09723.

    Bits per weight: b + 16 M / K + 1 / (N f), M = ceil(K / g) blocks, f the finest; the marks of blocks' starts are
    filled up to a byte.

    Differs from the paper (no code is public): the number of scales is given and their places are chosen, block by
    block, where theirs chooses one block size for each matrix by a threshold; ranges reach from the largest magnitude
    to its negative, as in `rtn`.

    Args:
        bits: 2 to 8.
        group_size: columns of a row that share a scale, on average; a multiple of finest.
        finest: columns of the smallest block.
    """
    require(
        finest >= 1 and group_size >= 1 and group_size % finest == 0,
        f"finequant(group_size={group_size}, finest={finest}): blocks must be whole multiples of the finest. Use 64 "
        "and 16.",
    )
    code = Lookup(AdaptiveBlocks(bits, group_size // finest), finest, "static")
    return Recipe("finequant", Isotropic(), NoTransform(), code, Nearest(), refresh="block")


def slim_llm(bits: int = 2, group_size: int = 128, damping: float = 0.01, refresh: Refresh = "input") -> Recipe:
    """SliM-LLM: salient groups get a bit more and as many others a bit less, rounded by OPTQ.

    Paper: Huang, Qin, Liu, et al.: SliM-LLM: Salience-Driven Mixed-Precision Quantization for Large Language Models,
    ICML 2025, arXiv 2405.14917.

    Bits per weight: b + (16 + b + 1) / g + 4 / (N g).

    Differs from the authors' code: how many groups exchange a bit is found by the rounding costs of the layer's own
    columns, and may be none, where theirs compares softmaxed outputs; ranges are searched with errors weighted by
    column, where theirs weighs salient entries; zero points have b + 1 bits in every group; nothing is stored or
    multiplied in groups of one width.

    Args:
        bits: 2 to 7, on average.
        group_size: columns that have the same number of bits, and in each row a scale.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = LaidOut(Lookup(MixedWidths(bits, HessianRange(damping=damping)), group_size), Exchanged(bits))
    return Recipe("slim_llm", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)
