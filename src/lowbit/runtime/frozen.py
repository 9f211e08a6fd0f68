"""The product as gradients see it: values are frozen, so only activations have one, and nothing is kept for it.

    y = x W'^T      dL/dx = dL/dy W'

Left to autograd, the decoded values of every layer would wait in memory for the way back: the model unpacked. Here
they are decoded a second time instead, which is what lets adapters be trained on top of a model that stays packed.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowbit.core.parts import Code
from lowbit.runtime.product import StoredCodes, decode_rows, product, slabs

_HAS_TRITON = find_spec("triton") is not None


def frozen_product(code: Code, stored: StoredCodes, x: Tensor) -> Tensor:
    """`product` of x [T, K], with a gradient by x where one is asked for."""
    if x.requires_grad and torch.is_grad_enabled():
        return _Frozen.apply(code, stored, x)  # type: ignore[no-untyped-call]
    return product(code, stored, x.detach())


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, code: Code, stored: StoredCodes, x: Tensor) -> Tensor:
        ctx.layer = code, stored
        return product(code, stored, x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        code, stored = ctx.layer
        return None, None, _product_of_rows(code, stored, gradient)


def _product_of_rows(code: Code, stored: StoredCodes, y: Tensor) -> Tensor:
    """y [T, N] times the values: [T, K] in y's type."""
    if y.is_cuda and _HAS_TRITON:
        from lowbit.kernels.triton.blocks import dense  # imports Triton, as does the next
        from lowbit.runtime.gpu import packed

        layer = packed(code, stored)
        if layer is not None:
            return y @ dense(layer, y.dtype)
    out = y.new_zeros(len(y), stored.shape[1])
    for start, stop in slabs(code, stored.shape):
        out += y[:, start:stop] @ decode_rows(code, stored, start, stop).to(y.dtype)
    return out
