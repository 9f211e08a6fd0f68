"""Random orthogonal matrices that a number restores, today and in any later version of the libraries below us.

The numbers come from numpy's `RandomState`, whose stream is frozen by promise (torch's and numpy's newer generators
may change theirs). A QR factorisation with positive diagonal turns a Gaussian matrix into one of the uniform (Haar)
distribution; it is continuous, so another LAPACK moves the result by rounding errors only.
"""

import numpy as np
import torch
from torch import Tensor

from lowbit.core.linalg import one_thread

# QR costs 4/3 n^3 operations and applying the matrix n per element; beyond this neither is small.
LARGEST_DENSE = 2048


def orthogonal(size: int, *seed: int) -> Tensor:
    """A Haar-distributed orthogonal matrix, float64 [size, size]. seed: one or more numbers from 0 to 2^32 - 1."""
    gaussian = np.random.RandomState(seed).standard_normal((size, size))
    with one_thread():
        q, r = torch.linalg.qr(torch.from_numpy(gaussian))
    return q * r.diagonal().sign()


def permutation(size: int, *seed: int) -> Tensor:
    """A uniformly distributed permutation, int64 [size]; seed as for `orthogonal`."""
    return torch.from_numpy(np.random.RandomState(seed).permutation(size).astype(np.int64))
