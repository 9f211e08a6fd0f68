"""E8P at run time: few tokens on the CPU straight from the codes, anything else slab by slab."""

from functools import cache

import torch
from torch import Tensor

from lowbit.codes import E8P
from lowbit.codes.e8p import GAINS, all_words, points
from lowbit.kernels.e8p_product import Stage
from lowbit.kernels.e8p_product import product as packed_product
from lowbit.runtime.product import StoredCodes, decode_rows, product, slab_product

_FEW_TOKENS = 8


@product.register
def _(code: E8P, stored: StoredCodes, x: Tensor) -> Tensor:
    if len(x) > _FEW_TOKENS or not x.is_cpu or x.requires_grad:
        return slab_product(code, stored, x)
    y = packed_product(_codes(code, stored), *_stages(code.bits), x.float())
    return (y * stored.tensors["scale"]).to(x.dtype)


@decode_rows.register
def _(code: E8P, stored: StoredCodes, start: int, stop: int) -> Tensor:
    scale = {"scale": stored.tensors["scale"]}
    return code.decode(_codes(code, stored)[start:stop], scale, torch.arange(stored.shape[1]))


def _codes(code: E8P, stored: StoredCodes) -> Tensor:
    (n, k), codes = stored.shape, stored.tensors["codes"]
    return codes.view(n, k // 8, code.bits)


@cache
def _stages(bits: int) -> tuple[Stage, Stage | None]:
    """The words of both stages as multiples of 1/4, and of 1/2 for the points of three bits."""
    words = (4 * all_words()).to(torch.int8)
    if bits == 2:
        return Stage(words, 0.25), None
    if bits == 3:
        return Stage(words, 0.25), Stage((2 * points()).to(torch.int8), 0.5 / GAINS[3][1])
    return Stage(words, 0.25), Stage(words, 0.25 / GAINS[4][1])
