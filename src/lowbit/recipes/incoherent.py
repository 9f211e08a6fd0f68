"""Methods that rotate first: QuIP, QuIP#, QTIP, EXL3 and lowbit's own trellis.

After a random rotation weights look Gaussian and of one size, whatever they were, so a fixed code can be made for them.
K inputs, N outputs; where the tiles of a code do not fit a layer, `lowbit.codes.fitting` says what is done and stored.
"""

from typing import Literal

from lowbit.codes import E8P, BitshiftTrellis, Levelled, MidriseGrid, Padded, TailBiting
from lowbit.core.errors import require
from lowbit.core.parts import Rounder
from lowbit.core.recipe import Recipe, Refresh
from lowbit.rounding import CoordinateDescent, Ldlq, RefittedScales
from lowbit.statistics import CrossMoment, SecondMoment
from lowbit.transforms import Chain, ChannelScales, RandomizedHadamard, RandomKronecker, Rescale

Scales = Literal["row", "tensor"]
_WIDTHS = (1, 2, 4, 8, 16)
# Measured: 1e-6, 1e-4, 1e-3, 3e-3, 1e-2 give KL 0.0375, 0.0306, 0.0287, 0.0288, 0.0298 on shakespeare-char at 2 bits.
_TARGET_DAMPING = 1e-3
# Measured for 1 to 8 bits (docs/LOG.md). Few bits want small errors everywhere, many want the largest weights in reach.
_EXL3_LOADING = (0.95, 0.95, 0.9, 0.9, 0.8, 0.67, 0.63, 0.62)
_DEVIATION = {"mul1": 1.0, "mcg": 1.2441, "3inst": 1.2437}


def quip(
    bits: int = 2, reach: float = 2.4, passes: int = 0, damping: float = 0.01, refresh: Refresh = "input"
) -> Recipe:
    """QuIP: balance, rotate by random Kronecker products, round with feedback to one grid for the whole layer.

    Paper: Chee, Cai, Kuleshov, De Sa: QuIP: 2-Bit Quantization of Large Language Models With Guarantees, NeurIPS 2023,
    arXiv 2307.13304.

    Bits per weight: b + 16 / N + 96 / (N K).

    Differs from the authors' code: columns are rounded first to last where they go from last to first; the rotation is
    stored as one number, so a checkpoint can be read back; the Hessian is damped once.

    Args:
        bits: 1 to 8.
        reach: of the grid in root mean squares of the rotated weights (the paper's rho).
        passes: of coordinate descent after rounding; the paper's LDLQ-RG makes up to 10, but also orders the columns.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    transform = Chain((Rescale(), RandomKronecker()))
    return Recipe(
        "quip", SecondMoment(), transform, MidriseGrid(bits, reach), _descended(damping, passes), None, refresh
    )


def quip_sharp(
    bits: int = 2, headroom: float = 1.0, passes: int = 10, damping: float = 0.01, refresh: Refresh = "input"
) -> Recipe:
    """QuIP#: randomized Hadamard, eight weights at a time on the E8 lattice, block LDLQ, coordinate descent.

    Also by the name "quip#".

    Paper: Tseng, Chee, Sun, Kuleshov, De Sa: QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice
    Codebooks, ICML 2024, arXiv 2402.04396.

    Bits per weight: b + 1 / N + 1 / K + 32 / (N K), inputs filled up to a multiple of 8.

    Differs from the authors' code: no fine-tuning, so signs stay bits where theirs become float16; layers that share an
    input are rounded apart; any dimension; at 4 bits the second stage's gain and the scale are lower (see `codes.e8p`);
    passes stop when nothing improves, and take no step that the loss does not favour.

    Args:
        bits: 2, 3 or 4.
        headroom: widens the scale; 1.14 is what the authors recommend at 2 bits (their scale 0.9 in place of 1.03).
        passes: of coordinate descent after block LDLQ, at most; 0 for none.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = Padded(E8P(bits, headroom))
    rounder = _descended(damping, passes)
    return Recipe("quip_sharp", SecondMoment(), RandomizedHadamard(), code, rounder, None, refresh)


def qtip(
    bits: int = 2,
    values: Literal["3inst", "1mad", "hyb"] = "3inst",
    L: int = 16,
    loading: float = 0.9,
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """QTIP: randomized Hadamard, tail-biting trellises over 16 x 16 weights, block LDLQ.

    Paper: Tseng, Sun, Hou, De Sa: QTIP: Quantization with Trellises and Incoherence Processing, NeurIPS 2024, arXiv
    2406.11235.

    Bits per weight: k + 1 / N + 1 / K + 16 / (N K), inputs filled up to a multiple of 16; where 16 does not divide the
    outputs, k (16 ceil(N / 16)) / N at most and 16 / K for the scale.

    Differs from the authors' code: no fine-tuning, so signs stay bits where theirs become float16; any dimension; the
    weights of a tile follow each other down its columns, which changes nothing on average; hyb's pairs are our own.

    Args:
        bits: 1 to 4, k.
        values: 3inst, the paper's better one without fine-tuning; 1mad; or hyb, which its kernels run, with V = 2.
        L: bits of a state; 16 in the paper, 12 to encode sixteen times faster.
        loading: root mean square of the weights in units of the code's, below 1 to leave room for feedback.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    trellis = BitshiftTrellis(L, bits, 2 if values == "hyb" else 1, (16, 16), values, "tensor", loading=loading)
    return Recipe("qtip", SecondMoment(), RandomizedHadamard(), _fitting(trellis), Ldlq(damping), None, refresh)


def exl3(
    bits: int = 2,
    values: Literal["mul1", "mcg", "3inst"] = "mul1",
    L: int = 16,
    loading: float | None = None,
    damping: float = 0.025,
    refresh: Refresh = "input",
) -> Recipe:
    """EXL3: channel scales, Hadamard in blocks of 128, trellises over 16 x 16 weights, block LDLQ.

    Source: the EXL3 format of ExLlamaV3 by turboderp, after QTIP (arXiv 2406.11235). `lowbit export --format exl3`
    writes its file format, where L is 16 and 128 divides inputs and outputs.

    Bits per weight: k + 17 / N + 17 / K, inputs filled up to a multiple of 16; where 16 does not divide the outputs,
    k (16 ceil(N / 16)) / N at most and 33 / K.

    Differs from its code: H is scaled along with W, so the feedback fits the loss; weights have a size for each number
    of bits, where EXL3 searches one for each layer; blocks are the largest divisor of a dimension up to 128, where EXL3
    fills up to 128.

    Args:
        bits: 1 to 8, k.
        values: the codebook: "mul1", EXL3's default since 1.4; "mcg", its default before, 4 % better at 1 bit and
            1 to 2 % worse from 2 bits on; "3inst", QTIP's.
        L: bits of a state; 16 in EXL3, 12 to encode sixteen times faster.
        loading: root mean square of the weights in units of the code's; None for what is best for the bits.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    name = f"exl3-{values}"
    code = _fitting(BitshiftTrellis(L, bits, 1, (16, 16), name, "unit", order="fragment"))
    size = (_EXL3_LOADING[bits - 1] if loading is None else loading) * _DEVIATION[values]
    outputs = (ChannelScales("left", size), RandomizedHadamard(128, "left"))
    inputs = (ChannelScales("right"), RandomizedHadamard(128, "right"))
    return Recipe("exl3", SecondMoment(), Chain((*outputs, *inputs)), code, Ldlq(damping), None, refresh)


def trellis(
    bits: int = 2,
    columns: int = 1,
    L: int = 16,
    values: Literal["strata", "mul1", "gaussian"] = "strata",
    scales: Scales = "row",
    loading: float = 0.9,
    damping: float = 0.01,
    passes: int = 0,
    window: int | None = None,
    refresh: Refresh = "input",
) -> Recipe:
    """lowbit's own: trellises down the outputs with all feedback, aiming at what the original model computes.

    QTIP's tiles are 16 columns that get no feedback from each other; here a tile is one column of 256 outputs, and
    where there are fewer outputs it is wider and settled column by column, so every column hears of all before it.
    Scales are refitted. Outputs are rotated only where they have no scales of their own: mixing them spreads the errors
    of large rows over small ones, which the proxy loss does not mind and the model does (at 2 bits KL 1.16 instead of
    1.91 on stories260K, no difference on the model that ships with lowbit).

    The statistic is Qronos's (arXiv 2505.11695) with a target damping of 1e-3, a thousand times the paper's: at 2 bits
    KL falls by a quarter on shakespeare-char against 1e-6 and rises by 3 % on stories260K. Against the layer's own
    second moment (`statistic=SecondMoment`) KL is 13 to 42 % lower at 2 bits (docs/LOG.md), and so is `qtip`'s with it:
    given the same statistic, qtip is 8 to 10 % lower than this at equal bits on two models and 7 to 70 % higher on
    two others. It takes a second run of the original blocks.

    Bits per weight: k + 17 / K with scales of rows, k + 1 / N + 1 / K + 16 / (N K) with one for the layer; inputs
    filled up to whole tiles, outputs by less than one for each row of tiles.

    Args:
        bits: k, 1 to 8.
        columns: of a tile of 256 weights, a power of two up to 16; the others follow from the outputs there are.
        L: bits of a state; 12, 14, 16, 18 trade time for accuracy, fourfold for each step.
        values: the trellis's values: "strata", a table of 2^L set-partitioned ones (L at least twice the bits),
            "mul1", computed from a sum of bytes and some 2 % worse, or a "gaussian" table.
        scales: "row" for one scale an output, "tensor" for one in all; refitted after rounding.
        loading: root mean square of the weights in units of the code's, below 1 to leave room for feedback.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        passes: of coordinate descent after rounding, each as long as the encoding itself.
        window: weights on each side of a tile's seam that it is found on; None for half the tile. 48 saves a third of
            the time and costs 1 % in squared error.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    require(columns in _WIDTHS, f"trellis(columns={columns!r}): must be one of {_WIDTHS}. Use 1.")
    tiles = BitshiftTrellis(L, bits, 1, (256 // columns, columns), values, scales, loading=loading)
    code = Levelled(TailBiting(tiles, window, joint=1))
    transform = RandomizedHadamard(sides="right" if scales == "row" else "both")
    rounder = RefittedScales(_descended(damping, passes))
    return Recipe("trellis", CrossMoment(_TARGET_DAMPING), transform, code, rounder, None, refresh)


def _fitting(trellis: BitshiftTrellis) -> Levelled:
    return Levelled(TailBiting(trellis))


def _descended(damping: float, passes: int) -> Rounder:
    return CoordinateDescent(Ldlq(damping), passes) if passes else Ldlq(damping)
