"""The Kronecker product of a Sylvester-Hadamard matrix and a small dense one, applied along the last axis.

    y = (S kron M) x / 2^(power/2),    S = [[1, 1], [1, -1]] kron ... kron [[1, 1], [1, -1]], `power` times

`mix_reference` forms the whole matrix: the oracle. `mix` views x as [.., 2^power, m], multiplies by M and runs
`power` rounds of butterflies (a, b) -> (a + b, a - b), in place, by numba on the CPU and by plain torch elsewhere and
under autograd. Cost per element: m multiply-adds and `power` additions.
"""

import numba
import torch
from torch import Tensor

from lowbit.core.hadamard import hadamard_matrix


def mix_reference(x: Tensor, power: int, dense: Tensor) -> Tensor:
    """x: [..., c * 2^power * m], c blocks side by side, each mixed on its own; dense: [m, m]."""
    matrix = torch.kron(hadamard_matrix(2**power).to(dense.dtype) / 2 ** (power / 2), dense).to(x)
    return (x.reshape(*x.shape[:-1], -1, len(matrix)) @ matrix.T).view(x.shape)


def mix(x: Tensor, power: int, dense: Tensor) -> Tensor:
    """The same as `mix_reference`, fast. Half types are computed in float32."""
    m = len(dense)
    y = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, m)
    y = (y @ dense.T.to(y)).view(-1, 2**power, m)
    if y.device.type == "cpu" and not y.requires_grad:
        _butterflies(y.numpy(), 2 ** (-power / 2))
    else:
        y = _butterflies_torch(y, power)
    return y.view(x.shape).to(x.dtype)


def _butterflies_torch(y: Tensor, power: int) -> Tensor:
    shape = y.shape
    for level in range(power):
        a, b = y.reshape(shape[0], -1, 2, 2**level * shape[2]).unbind(2)
        y = torch.stack((a + b, a - b), dim=2)
    return (y * 2 ** (-power / 2)).view(shape)


@numba.njit(parallel=True, cache=True)
def _butterflies(y, scale):  # type: ignore[no-untyped-def]
    """y: [rows, 2^power, m], transformed in place along its middle axis."""
    rows, n, m = y.shape
    for r in numba.prange(rows):
        flat = y[r].reshape(n * m)
        half = m
        while half < n * m:
            for start in range(0, n * m, 2 * half):
                low, high = flat[start : start + half], flat[start + half : start + 2 * half]
                for i in range(half):
                    a, b = low[i], high[i]
                    low[i], high[i] = a + b, a - b
            half *= 2
        factor = flat.dtype.type(scale)
        for i in range(n * m):
            flat[i] *= factor
