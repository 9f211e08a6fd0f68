"""The Sylvester-Hadamard transform of `lowbit.kernels.hadamard` on a GPU: one read and one write of each number.

A round of butterflies, (a, b) -> (a + b, a - b), on numbers that are 2^i apart is a reshape to [.., 2, 2^i], a sum and
a difference. A program transforms one vector of up to 2^14 numbers in its registers, exchanging what lies in other
threads through shared memory. Bound by memory: 8 bytes a number in float32, where products with matrices of order 64
read and write everything once for each six rounds. Not measured for want of a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_ROUNDS = 14
"""Of one program: 2^14 float32 are half the registers of 128 threads."""


def mix(x: Tensor, power: int) -> Tensor:
    """x [.., 2^power], power <= MOST_ROUNDS, times Sylvester's matrix over 2^(power / 2), computed in float32."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = x.numel() >> power
    warps = max(1, min(16, (1 << power) // 512))
    if rows:
        _mix[(rows,)](x.contiguous(), y, 1 << power, 2 ** (-power / 2), power, num_warps=warps)
    return y


@triton.jit
def _mix(x, y, n, factor, POWER: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, 1 << POWER)
    at = tl.program_id(0).to(tl.int64) * n + lane
    values = tl.load(x + at).to(tl.float32)
    for i in tl.static_range(POWER):
        pairs = tl.reshape(values, [1 << (POWER - 1 - i), 2, 1 << i])
        first, second = tl.split(tl.trans(pairs, 0, 2, 1))
        pairs = tl.join(first + second, first - second)
        values = tl.reshape(tl.trans(pairs, 0, 2, 1), [1 << POWER])
    tl.store(y + at, (values * factor).to(y.dtype.element_ty))
