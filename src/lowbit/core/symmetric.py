"""Large symmetric matrices, handled in bands of rows so that nothing of their size is held beside them.

A Hessian of K inputs takes 8 K^2 bytes, the most of all that a layer needs: 1 GB for the widest of a model of 7B. So
products that are known to be symmetric are taken in halves and written twice, and a matrix is turned or made
symmetric where it lies. Beside the matrix each function holds a band of `_BAND` rows, and nothing depends on threads.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lowbit.core.products import rows_times

_BAND = 512
# Of a product of which half is taken: narrow enough that little more than the half is, wide enough for full speed.
_PRODUCT_BAND = 128
# Added up in float32 in one go.
_TERMS = 256


def mix_in_product(mean: Tensor, before: float, share: float, x: Tensor, y: Tensor) -> None:
    """mean <- before * mean + share * x^T y, in place, for a product that is symmetric.

    mean: [K, K] symmetric, float64; x, y: [t, K], whose product is taken in their own type, `_TERMS` at a time.
    Cost: t K^2 / 2 multiply-adds; the other half is written as the transpose of the first.
    """
    left = _pieces(x)
    right = left if y is x else _pieces(y)
    for band in bands(len(mean), _PRODUCT_BAND):
        width, product = band.stop - band.start, _summed(left, right, band, band.start)
        rows = mean[band, band.start :].mul_(before).add_(product, alpha=share)
        rows[:, :width] = rows[:, :width].triu() + rows[:, :width].triu(1).T
        mean[band.stop :, band] = rows[:, width:].T


def mix_in_any_product(mean: Tensor, before: float, share: float, x: Tensor, y: Tensor) -> None:
    """`mix_in_product` for a product that is not symmetric, of which all is computed."""
    left, right = _pieces(x), _pieces(y)
    for band in bands(len(mean)):
        mean[band].mul_(before).add_(_summed(left, right, band, 0), alpha=share)


def _summed(left: list[Tensor], right: list[Tensor], band: slice, start: int) -> Tensor:
    """Rows `band` of a product, its columns from `start` on, as the sum of that of pieces."""
    product = rows_times(left[0][band], right[0][start:])
    for a, b in zip(left[1:], right[1:], strict=True):
        product += rows_times(a[band], b[start:])
    return product


def _pieces(x: Tensor) -> list[Tensor]:
    """x^T, `_TERMS` columns each."""
    return [x[start : start + _TERMS].T.contiguous() for start in range(0, len(x), _TERMS)]


def symmetrize(matrix: Tensor) -> Tensor:
    """(matrix + matrix^T) / 2 of a square matrix, which is overwritten by it."""
    for band in bands(len(matrix)):
        rows, columns = matrix[band, band.start :], matrix[band.start :, band]
        half = (rows + columns.T) / 2
        rows.copy_(half)
        columns.copy_(half.T)
    return matrix


def turn(matrix: Tensor) -> Tensor:
    """A square matrix with rows and columns in reverse order, overwriting it."""
    k = len(matrix)
    for start in range(0, k // 2, _BAND):
        stop = min(start + _BAND, k // 2)
        upper, lower = matrix[start:stop], matrix[k - stop : k - start]
        turned = upper.flip(0, 1)
        upper.copy_(lower.flip(0, 1))
        lower.copy_(turned)
    if k % 2:
        middle = matrix[k // 2]
        middle.copy_(middle.flip(0))
    return matrix


def upper_bands(matrix: Tensor) -> Tensor:
    """Half of a symmetric matrix, all there is to send: what each band of rows has from its diagonal block on, flat."""
    return torch.cat([matrix[band, band.start :].flatten() for band in bands(len(matrix))])


def from_upper_bands(flat: Tensor, k: int) -> Tensor:
    """The symmetric matrix [k, k] of which `upper_bands` is `flat`."""
    matrix, start = flat.new_empty(k, k), 0
    for band in bands(k):
        rows = matrix[band, band.start :]
        rows.copy_(flat[start : start + rows.numel()].view_as(rows))
        matrix[band.stop :, band] = rows[:, band.stop - band.start :].T
        start += rows.numel()
    return matrix


def quadratic_form(x: Tensor, matrix: Tensor, dtype: torch.dtype = torch.float64) -> float:
    """tr(x M x^T) for x [N, K] and a symmetric M [K, K], summed in float64; N K^2 / 2 multiply-adds in `dtype`.

    In float32, four times as fast, it is good to about 1e-6 of |x|^2 |M|: well where x has nothing to do with M.
    """
    total = 0.0
    for band in bands(len(matrix)):
        own = x[:, band].to(dtype).contiguous()
        pulled = rows_times(own, matrix[band, band].to(dtype).contiguous())
        for other in bands(band.start):
            pulled += 2 * rows_times(x[:, other].to(dtype).contiguous(), matrix[band, other].to(dtype).contiguous())
        total += float((pulled * own).sum(dtype=torch.float64))
    return total


def bands(k: int, width: int = _BAND) -> Iterator[slice]:
    return (slice(start, min(start + width, k)) for start in range(0, k, width))
