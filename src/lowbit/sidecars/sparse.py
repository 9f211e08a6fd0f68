"""A sparse matrix beside the codes: its entries' columns and float16 values row by row, and how many each row has.

Bits: E entries in a layer [N, K] take E (16 + ceil(log2 K)) + N ceil(log2(K + 1)), each of the three tensors rounded up
to whole bytes. A column index of 12 bits in place of CSR's usual 16 or 32 is what makes outliers cheaper here than in
the papers' counts. At run time they are held as float32 and int32.

`best_values` gives the entries the values that are best beside given codes: with the others held, the loss is a
parabola in a row's entries M, whose bottom is

    s_M = s_M + (W - Q - S)_row H_:M H_MM^-1
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.linalg import one_thread
from lowbit.core.problem import LayerProblem
from lowbit.kernels.sparse_product import product

# Added to the diagonal of H_MM, as a part of it: directions that small are float32 noise.
_NOISE = 1e-6
# Numbers in the systems of equations that are solved together.
_TOGETHER = 1 << 22


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """start: int64 [N + 1], where each row's entries begin; column: int32 [E], ascending in each row; value: float32
    [E] that float16 holds; inputs: K."""

    start: Tensor
    column: Tensor
    value: Tensor
    inputs: int

    @property
    def row(self) -> Tensor:
        """The row of each entry, int64 [E]."""
        counts = self.start.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def mask(self) -> Tensor:
        """Where the entries are, bool [N, K]."""
        where = torch.zeros(len(self.start) - 1, self.inputs, dtype=torch.bool)
        where[self.row, self.column.long()] = True
        return where

    def dense(self) -> Tensor:
        matrix = self.value.new_zeros(len(self.start) - 1, self.inputs)
        matrix[self.row, self.column.long()] = self.value
        return matrix

    def apply(self, x: Tensor) -> Tensor:
        return product(self.start, self.column, self.value, x)

    def tensors(self) -> dict[str, Tensor]:
        return {"outlier_count": self.start.diff(), "outlier_index": self.column, "outlier_value": self.value}


def sparse_fields(entries: int, shape: tuple[int, int]) -> dict[str, Field]:
    """What `entries` entries of a layer [N, K] are stored as."""
    n, k = shape
    return {
        "outlier_count": Bits((n,), k.bit_length()),
        "outlier_index": Bits((entries,), max(1, (k - 1).bit_length())),
        "outlier_value": Array((entries,), torch.float16),
    }


def restored_sparse(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> SparseMatrix:
    """The matrix of its stored tensors.

    Raises BadRequest where the counts do not add up, or a row does not name columns of the layer in ascending order.
    """
    counts, column, value = (tensors[f"outlier_{name}"] for name in ("count", "index", "value"))
    counts, k = counts.long(), shape[1]
    require(
        int(counts.sum()) == len(column),
        f"tensor outlier_count counts {int(counts.sum())} entries, but {len(column)} are stored.",
    )
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    require(
        int(column.max()) < k and bool(((row * k + column).diff() > 0).all()),
        f"tensor outlier_index does not name each row's columns, of {k}, in ascending order.",
    )
    return SparseMatrix(_starts(counts), column.int(), value.float(), k)


def largest_entries(scores: Tensor, count: int) -> Tensor:
    """A mask, bool [N, K], of the `count` largest scores; of equal ones, those first in the row-major order."""
    order = scores.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(scores.shape)


def sparse(values: Tensor, mask: Tensor) -> SparseMatrix:
    """The entries of `values` [N, K], which float16 holds, where the mask [N, K] is set."""
    column = mask.nonzero()[:, 1].int()
    return SparseMatrix(_starts(mask.sum(1)), column, values[mask].float(), mask.shape[1])


def best_values(problem: LayerProblem, w_hat: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    """Values [N, K], float64, zero outside of the mask, that have the least loss beside codes that decode to w_hat.

    before: [N, K], the values to start from, zero outside of the mask too. A row Hessian is left out of account.
    """
    H, values = problem.hessian.double(), before.double().clone()
    pull = (problem.weight.double() - w_hat.double() - values) @ H
    counts = mask.sum(1)
    for count in sorted(set(counts[counts > 0].tolist())):
        alike = (counts == count).nonzero()[:, 0]
        for rows in alike.split(max(1, _TOGETHER // count**2)):
            entries = mask[rows].nonzero()[:, 1].view(len(rows), count)
            system = H[entries[:, :, None], entries[:, None, :]]
            diagonal = system.diagonal(dim1=1, dim2=2)
            diagonal += _NOISE * diagonal + torch.finfo(H.dtype).tiny
            with one_thread():
                step = torch.linalg.solve(system, pull[rows[:, None], entries])
            values[rows[:, None], entries] += step
    return values


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
