"""AWQ checkpoints in the "gemm" layout that AutoAWQ began and vLLM and GPTQModel read. 4 bits only.

    qweight  int32 [K, N / 8]  codes          scales  float16 [G, N]
    qzeros   int32 [G, N / 8]  zero points

Nibble j of a word, lowest first, holds output _ORDER[j] of its eight: the order that suits the kernel it was made for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.exchange.format import as_float16, check_scales, take
from lowbit.exchange.integers import Grid, Integers, integers_of, layer_of
from lowbit.packing import pack_words, unpack_words

_ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])


@dataclass(frozen=True)
class Awq:
    name = method = "awq"
    key = "qweight"
    fields = frozenset({"qweight", "qzeros", "scales"})
    settings_file = None
    seen = staticmethod(integers_of)
    layer = staticmethod(layer_of)
    holds = "integers of 4 bits with float16 scales, by rows or groups of one size for all layers, columns in order"

    def objection(self, layer: Integers) -> str | None:
        if layer.bits != 4:
            return f"it has {layer.bits} bits"
        if layer.shape[0] % 8:
            return f"its {layer.shape[0]} outputs are not a multiple of 8"
        if not layer.grid.in_order:
            return "its groups hold columns that are not neighbours (act-order)"
        if as_float16(layer.scale) is None:
            return f"its scales are {layer.scale.dtype} and do not fit float16"
        return None

    def tensors(self, layer: Integers) -> dict[str, Tensor]:
        return {
            "qweight": _pack(layer.codes.T),
            "qzeros": _pack(layer.zero.T),
            "scales": layer.scale.half().T.contiguous(),
        }

    def config(self, grids: Mapping[str, Grid], left: Sequence[str]) -> dict[str, Any]:
        sizes = sorted({-1 if grid.groups == 1 else grid.group_size for grid in grids.values()})
        require(
            len(sizes) == 1,
            f"AWQ has one group size for all layers; here there are {', '.join(map(str, sizes))}. Use gptq.",
        )
        config = {"quant_method": "awq", "bits": 4, "group_size": sizes[0], "zero_point": True, "version": "gemm"}
        return config | ({"modules_to_not_convert": ["lm_head", *left]} if left else {})

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Integers:
        require(config.get("bits") == 4, f"bits is {config.get('bits')!r}; AWQ has 4.")
        version = str(config.get("version", "gemm")).lower()
        require(version == "gemm", f"version is {version!r}; lowbit reads AWQ's gemm layout.")
        scale = check_scales(take(tensors, "scales", None, (None, None)).T.contiguous())
        n, groups = scale.shape
        require(n % 8 == 0, f"its {n} outputs are not a multiple of 8.")
        qweight = take(tensors, "qweight", torch.int32, (None, n // 8))
        zero = _unpack(take(tensors, "qzeros", torch.int32, (groups, n // 8)))
        k = len(qweight)
        require(k > 0 and k % groups == 0, f"its {groups} groups do not divide its {k} inputs.")
        return Integers(
            4, _unpack(qweight).T.contiguous(), scale, zero.T.contiguous(), torch.arange(k) // (k // groups)
        )


def _pack(values: Tensor) -> Tensor:
    """[R, N] as int32 [R, N / 8]."""
    rows, n = values.shape
    return pack_words(values.reshape(rows, -1, 8)[..., _ORDER].reshape(rows, n), 4)


def _unpack(words: Tensor) -> Tensor:
    rows, count = words.shape
    stored = unpack_words(words, 4, 8 * count)
    return stored.view(rows, -1, 8)[..., _ORDER.argsort()].reshape(rows, -1)
