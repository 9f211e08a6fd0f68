"""Methods on grids that a runtime of others stores as they are, so that nothing is rounded a second time: K-quants."""

from lowbit.codes import KQuant
from lowbit.core.recipe import Recipe, Refresh
from lowbit.rounding import Ldlq
from lowbit.statistics import SecondMoment
from lowbit.transforms import NoTransform


def kquant(bits: int = 4, damping: float = 0.01, refresh: Refresh = "input") -> Recipe:
    """llama.cpp's K-quants, rounded by OPTQ: `lowbit export --format gguf` then writes the very same codes.

    Paper: none; the blocks are those of llama.cpp (ggml), the rounding is that of Frantar, Ashkboos, Hoefler, Alistarh:
    OPTQ, ICLR 2023, arXiv 2210.17323.

    Bits per weight: 2.625, 3.4375, 4.5, 5.5 and 6.5625 for 2 to 6 bits where 256 divides the inputs; where only 32
    does 4.5 (2 and 3 bits), 5.5 (4 and 5) and 8.5 (6).

    Differs from llama.cpp's quantizer: errors are fed back along the whole Hessian, where an importance matrix is its
    diagonal alone, and steps and minima follow the weights as they are compensated. All layers have the same type.

    Args:
        bits: 2 to 6.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    return Recipe("kquant", SecondMoment(), NoTransform(), KQuant(bits), Ldlq(damping), refresh=refresh)
