"""Methods whose levels are found in the weights: clusters of a row, shared tables, low-rank tables, vectors.

g is the group size, or K for "row"; K inputs, N outputs.
"""

from typing import Literal

from lowbit.codes import BlockScaled, ClusteredLevels, FinerColumns, Lookup, LowRankLevels, SharedLevels, VectorCodebook
from lowbit.core.errors import require
from lowbit.core.recipe import Recipe, Refresh
from lowbit.recipes.scalar import GroupSize, whole_row
from lowbit.rounding import Ldlq, Nearest, RefittedTables
from lowbit.sidecars import Magnitude, Sensitivity, SparseOutliers, TwoCriteria
from lowbit.sidecars.criteria import Criterion
from lowbit.statistics import FisherDiagonal, SecondMoment
from lowbit.transforms import NoTransform


def squeezellm(
    bits: int = 3,
    outliers: float = 0.0045,
    sensitive: float = 0.0005,
    importance: Literal["fisher", "diagonal"] = "fisher",
    group_size: GroupSize = "row",
    refresh: Refresh = "input",
) -> Recipe:
    """SqueezeLLM: free levels for each row by sensitivity-weighted k-means, and the odd weights kept apart.

    Paper: Kim, Hooper, Gholami, Dong, Li, Shen, Mahoney, Keutzer: SqueezeLLM: Dense-and-Sparse Quantization, ICML
    2024, arXiv 2306.07629.

    Bits per weight: b + 16 2^b / g, and with f = outliers + sensitive above zero f (16 + i) + ceil(log2(K + 1)) / K,
    i = ceil(log2 K).

    Differs from the authors' code: clusters are the best there are, where theirs are 50 Lloyd iterations from
    k-means++; fixed fractions of every layer are kept apart, where theirs lie beyond a threshold in quartiles that is
    tuned for the model; their values are refitted to the layer's outputs.

    Args:
        bits: 1 to 8.
        outliers: fraction of the weights that are kept apart for their size, 0 to 1.
        sensitive: fraction that are kept apart for their sensitivity, before those; 0 to 1, zero without gradients.
        importance: what counts for levels and as sensitivity: "fisher", squared gradients of single weights, which
            takes a backward pass of the whole model, or "diagonal", diag(H) of the layer's inputs.
        group_size: columns of a row that share a table; "row" or -1 for the whole row, "tensor" for the whole layer.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = Lookup(ClusteredLevels(bits, importance), whole_row(group_size), "static")
    require(
        min(outliers, sensitive) >= 0,
        f"squeezellm(outliers={outliers}, sensitive={sensitive}): must not be negative. Use 0.0045 and 0.0005.",
    )
    require(
        importance == "fisher" or not sensitive,
        f'squeezellm(sensitive={sensitive}): which weights are sensitive takes importance="fisher" to tell. Use 0.',
    )
    statistic = FisherDiagonal() if importance == "fisher" else SecondMoment()
    criterion: Criterion = Sensitivity() if sensitive else Magnitude()
    if sensitive and outliers:
        criterion = TwoCriteria(Sensitivity(), sensitive, Magnitude())
    kept = outliers + sensitive
    side_car = SparseOutliers(criterion, kept) if kept else None
    return Recipe("squeezellm", statistic, NoTransform(), code, Nearest(), side_car, refresh)


def jlcm(bits: int = 2, tables: int = 16, damping: float = 0.01, refresh: Refresh = "input") -> Recipe:
    """JLCM: a few tables for the layer, each for the rows that are alike.

    Paper: Yvinec, Dapogny, Bailly: Network Memory Footprint Compression Through Jointly Learnable Codebooks and
    Mappings, ICLR 2024, arXiv 2309.17361.

    Bits per weight: b + 16 T 2^b / (N K) + ceil(log2 T) / K for T tables.

    Differs from the paper: rows stay in place and store which table is theirs; tables and rows' choices are found
    together by alternation, codes by feedback; no gradients.

    Args:
        bits: 1 to 8.
        tables: 1 to 256; 1 is one table for the layer.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = Lookup(SharedLevels(bits, tables, "conditional"))
    return Recipe("jlcm", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)


def lcq(
    bits: int = 2, rank: int = 2, group_size: GroupSize = 64, damping: float = 0.01, refresh: Refresh = "input"
) -> Recipe:
    """LCQ: the tables of all groups are combinations of a few directions that the layer shares.

    Paper: Cai, Li: LCQ: Low-Rank Codebook based Quantization for Large Language Models, 2024, arXiv 2405.20973.

    Bits per weight: b + 16 (rank + 1) / g + 16 rank 2^b / (N K).

    Differs from the paper (no code is public): directions and groups' numbers are fitted to the weights, column by
    column as costly as their errors are, not trained on block outputs; groups' numbers are float16, not quantized
    again; codes are rounded with feedback.

    Args:
        bits: 1 to 8.
        rank: 1 to 2^bits - 1; 1 bends all groups' grids alike.
        group_size: columns of a row that share a table; "row" or -1 for the whole row, "tensor" for the whole layer.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    code = Lookup(LowRankLevels(bits, rank), whole_row(group_size))
    return Recipe("lcq", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)


def gptvq(
    bits: int = 2,
    dimension: int = 2,
    group_size: int = 256,
    block_size: int | None = None,
    updates: int = 10,
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """GPTVQ: vectors of inputs, with a codebook for each group of columns found when rounding reaches it, and updated.

    Paper: van Baalen, Kuzmin, Nagel et al.: GPTVQ: The Blessing of Dimensionality for LLM Quantization, 2024, arXiv
    2402.15319.

    Bits per weight: b + (8 d 2^(b d) + 16) / (N g); scales of blocks add 4 / block_size + 64 / (N K).

    Differs from the authors' code: vectors are encoded and fed back jointly, in the metric of block LDLQ; a codebook
    serves all rows, where theirs serves some; it is updated by conjugate gradients and kept in 8 bits throughout. Their
    compression of one-dimensional codebooks by their singular values is `lcq`.

    Args:
        bits: of an index for each weight; bits x dimension is at most 16.
        dimension: weights of a vector, d.
        group_size: columns that share a codebook.
        block_size: columns of a row that share a four-bit scale, 32 or 64 in the paper; none for no such scales.
        updates: steps for all codebooks together once codes are chosen; 0 for none.
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    vectors = VectorCodebook(dimension, bits * dimension, group_size=group_size, codebooks="dynamic", dtype="int8")
    code = BlockScaled(vectors, block_size) if block_size else vectors
    rounder = RefittedTables(Ldlq(damping), updates) if updates else Ldlq(damping)
    return Recipe("gptvq", SecondMoment(), NoTransform(), code, rounder, refresh=refresh)


def vptq(
    dimension: int = 4,
    index_bits: int = 8,
    residual_bits: int = 0,
    outlier_bits: int = 0,
    group_size: int | Literal["tensor"] = "tensor",
    damping: float = 0.01,
    refresh: Refresh = "input",
) -> Recipe:
    """VPTQ: vectors of outputs, so that OPTQ's feedback between columns is kept whole; a second stage if wanted.

    Paper: Liu, Wen, Wang et al.: VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large Language Models,
    EMNLP 2024, arXiv 2409.17066.

    Bits per weight: (b + r) / d + 16 d (2^b + 2^r) / (N g), without the 2^r where r is 0; g is K for "tensor". With
    outlier_bits o, of c columns: (1 - c / K) (b + r) / d + 16 d (2^b + 2^r) / (N g) + c o / (d K) + 16 d 2^o / (N K) +
    c i / (N K), i = ceil(log2 K).

    Differs from the authors' code: outlier columns have vectors as long as all others; no normalised weights (a
    transform), no fine-tuning.

    Args:
        dimension: outputs of a vector, d; must divide N.
        index_bits: of a vector's index, b; 12 in the paper, for models of billions. A weight takes b / d of them.
        residual_bits: of the second stage's index, r; 0 for none.
        outlier_bits: of an index in the one column of a hundred whose inputs are largest; 0 for no such columns.
        group_size: columns that share codebooks, or "tensor".
        damping: added to diag(H), as a fraction of its mean; >= 0.
        refresh: "input" recomputes inputs after each group of layers that share one, "block" once per decoder block.
    """
    vectors = VectorCodebook(dimension, index_bits, residual_bits, "outputs", group_size, "diagonal")
    code = FinerColumns(vectors, outlier_bits) if outlier_bits else vectors
    return Recipe("vptq", SecondMoment(), NoTransform(), code, Ldlq(damping), refresh=refresh)
