"""A layer as EXL3 sees it: trellis codes in fragments of 16 x 16 between two rotations in blocks of 128.

    W = diag(svh) Q T Q diag(suh),    T [N, K] the decoded values, Q symmetric Hadamard in blocks of 128

lowbit writes the same as W = L^-1 T R. Whether R is Q diag(suh), and the transpose of L^-1 Q diag(svh), is asked of the
maps themselves: a vector of ones finds the diagonal, a random one tells whether there is nothing else. So any recipe
whose transform comes to this can be stored, however it is put together.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lowbit.codes import TailBiting
from lowbit.core.errors import BadRequest, require
from lowbit.core.layer import QuantizedLayer, restore_layer
from lowbit.core.maps import LinearMap
from lowbit.core.random import stream
from lowbit.recipes import exl3
from lowbit.transforms import RandomizedHadamard

Codebook = Literal["mul1", "mcg", "3inst"]
BLOCK = 128
_CODEBOOKS: dict[str, Codebook] = {"exl3-mul1": "mul1", "exl3-mcg": "mcg", "exl3-3inst": "3inst"}
_STATE_BITS = 16


@dataclass(frozen=True)
class FragmentGrid:
    """shape: [N, K]."""

    shape: tuple[int, int]
    bits: int
    values: Codebook


@dataclass(frozen=True, eq=False)
class Fragments:
    """codes: uint8 [K / 16, N / 16, 256], below 2^bits, along the path; suh: float16 [K]; svh: float16 [N]."""

    bits: int
    values: Codebook
    codes: Tensor
    suh: Tensor
    svh: Tensor

    @property
    def grid(self) -> FragmentGrid:
        return FragmentGrid((len(self.svh), len(self.suh)), self.bits, self.values)


def fragments_of(layer: QuantizedLayer) -> Fragments:
    """The fragments of a layer [N, K]; raises BadRequest saying why where it is not made of such."""
    require(
        layer.correction is None,
        f"it keeps something beside its codes ({type(layer.recipe.side_car).__name__}), for which there is no place",
    )
    n, k = layer.shape
    require(
        n % BLOCK == 0 and k % BLOCK == 0,
        f"its {n} outputs or {k} inputs are no multiple of {BLOCK}; left out of quantization (`--ignore`) it is "
        "stored as it is",
    )
    code = layer.recipe.code_at(layer.shape)
    path = code.trellis if isinstance(code, TailBiting) else None
    if path is None or path.order != "fragment" or path.scales != "unit":
        raise BadRequest(f"its codes are those of {type(code).__name__}, not tail-biting fragments without a scale")
    values = _CODEBOOKS.get(path.values)
    if values is None or path.L != _STATE_BITS:
        raise BadRequest(
            f"its trellis has values {path.values!r} of L={path.L} bits, where EXL3 has {', '.join(_CODEBOOKS)} of "
            f"{_STATE_BITS}"
        )
    suh = _diagonal(layer.transform.right, k)
    svh = _diagonal(layer.transform.left.inverse().transpose(), n)
    codes = layer.codes.view(n // 16, k // 16, 256).transpose(0, 1).contiguous()
    return Fragments(path.step_bits, values, codes, suh, svh)


def layer_of(fragments: Fragments, origin: str) -> QuantizedLayer:
    """The layer of lowbit that stands for the same weights; origin: the recipe's name, for how it was made is unknown.

    Scales of lowbit are positive, so the signs are split off.
    """
    shape = fragments.grid.shape
    recipe = replace(exl3(fragments.bits, fragments.values), name=origin)
    stored = {
        "codes": fragments.codes.transpose(0, 1).contiguous(),
        "left_scale": fragments.svh.abs(),
        "left_signs": (fragments.svh < 0).to(torch.uint8),
        "right_scale": fragments.suh.abs(),
        "right_signs": (fragments.suh < 0).to(torch.uint8),
    }
    return restore_layer(recipe, shape, stored)


def _diagonal(map: LinearMap, size: int) -> Tensor:
    """d, float16 [size], of a map Q diag(d); raises BadRequest where it is another or d is not float16."""
    mixing = RandomizedHadamard(BLOCK, "right")
    plain = mixing.restore({"right_signs": torch.zeros(size)}, (size, size)).right
    found = plain.inverse().apply(map.apply(torch.ones(size, dtype=torch.float64)))
    probe = torch.randn(size, dtype=torch.float64, generator=stream(0, "which map"))
    got, half = map.apply(probe), found.half()
    tolerance = 1e-9 * got.abs().max()
    if not bool((got - plain.apply(found * probe)).abs().max() <= tolerance):
        raise BadRequest(f"its weights are stored in other coordinates than rotated in blocks of {BLOCK}")
    require(bool(((half.double() - found).abs() <= 1e-9 * found.abs()).all()), "its scales do not fit float16")
    return half
