"""The Kronecker product of a Sylvester-Hadamard matrix and a small dense one, applied along the last axis.

    y = (S kron M) x / 2^(power/2),    S = [[1, 1], [1, -1]] kron ... kron [[1, 1], [1, -1]], `power` times

`mix_reference` forms the whole matrix: the oracle. `mix` views x as [.., 2^power, m], multiplies by M and runs
`power` rounds of butterflies (a, b) -> (a + b, a - b), in place, by numba on the CPU; elsewhere and under autograd it
multiplies by Sylvester matrices of order 64, six rounds at a time. Cost per element: m multiply-adds and `power` (or
64 / 6 as many) additions.
"""

import numba
import torch
from torch import Tensor

from lowbit.core.hadamard import hadamard_matrix

# Off the CPU, rounds of butterflies are memory traffic; this many are one product with a matrix of order 64.
_STEP = 6
# Up to this many numbers, waking other threads costs more than it saves.
_SERIAL_NUMEL = 1 << 16


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
        run = _butterflies if y.numel() <= _SERIAL_NUMEL else _butterflies_in_parallel
        run(y.numpy(), 2 ** (-power / 2))
    else:
        y = _products(y, power)
    return y.view(x.shape).to(x.dtype)


def _products(y: Tensor, power: int) -> Tensor:
    """y: [rows, 2^power, m] times Sylvester's matrix, as products with matrices of order up to 2^_STEP."""
    shape = y.shape
    while power:
        step = min(power, _STEP)
        power -= step
        matrix = hadamard_matrix(2**step).to(y) / 2 ** (step / 2)
        y = matrix @ y.reshape(-1, 2**step, 2**power * shape[2])
    return y.view(shape)


@numba.njit(parallel=True, cache=True)
def _butterflies_in_parallel(y, scale):  # type: ignore[no-untyped-def]
    for r in numba.prange(len(y)):
        _butterflies(y[r : r + 1], scale)


@numba.njit(cache=True)
def _butterflies(y, scale):  # type: ignore[no-untyped-def]
    """y: [rows, 2^power, m], transformed in place along its middle axis."""
    rows, n, m = y.shape
    for r in range(rows):
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
