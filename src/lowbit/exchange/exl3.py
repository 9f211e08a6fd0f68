"""EXL3 folders, as exllamav3 writes and GPTQModel reads them. A layer with K inputs and N outputs:

    trellis  int16 [K / 16, N / 16, 16 b]  256 codes of b bits a tile, highest bit first, in 32-bit words
    suh      float16 [K]                   svh  float16 [N]
    mul1 or mcg  int32 [1] or []           which codebook: its multiplier; neither for 3inst

    W^T = diag(suh) H T H diag(svh),       T the decoded tiles, H Hadamard in blocks of 128

suh and svh are the signs of lowbit's transform times its scales. The values of a codebook are those of `exl3-mul1` and
its like in `lowbit.codes.trellis_values`; readers in half precision round them once more.

Source: the readers of exllamav3 and of GPTQModel 7.7. Not read: half bits (16 b + 8 words a tile), and the packed signs
(su, sv) of exllamav3's first weeks. exllamav3 itself looks at the tensors alone; GPTQModel asks for `tensor_storage` in
config.json and takes a `version` there for another format's, so none is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Array
from lowbit.exchange.format import take
from lowbit.exchange.fragments import Codebook, FragmentGrid, Fragments, fragments_of, layer_of

_TAGS: dict[Codebook, int] = {"mul1": 0x83DCD12D, "mcg": 0xCBAC1FED}
"""The multipliers that name a codebook."""


@dataclass(frozen=True)
class Exl3:
    name = method = "exl3"
    key = "trellis"
    fields = frozenset({"trellis", "suh", "svh", "su", "sv", *_TAGS})
    settings_file = "quantization_config.json"
    seen = staticmethod(fragments_of)
    layer = staticmethod(layer_of)
    holds = (
        "what the recipe exl3 makes with L=16: trellis codes of 1 to 8 bits in 16 x 16 fragments, rotated in blocks of "
        "128, inputs and outputs in multiples of 128"
    )

    def objection(self, layer: Fragments) -> str | None:
        return None  # what fragments_of finds can be stored

    def tensors(self, layer: Fragments) -> dict[str, Tensor]:
        tensors = {"trellis": _packed(layer.codes, layer.bits), "suh": layer.suh, "svh": layer.svh}
        if layer.values in _TAGS:
            tensors[layer.values] = torch.tensor(_TAGS[layer.values], dtype=torch.uint32).view(torch.int32)
        return tensors

    def config(self, grids: Mapping[str, FragmentGrid], left: Sequence[str]) -> dict[str, Any]:
        weights = sum(n * k for n, k in (grid.shape for grid in grids.values()))
        bits = sum(grid.bits * grid.shape[0] * grid.shape[1] for grid in grids.values()) / weights
        codebooks = {grid.values for grid in grids.values()}
        return {
            "quant_method": "exl3",
            "format": "exl3",
            "bits": round(bits, 4),
            "out_scales": "always",
            "codebook": "mul1" if len(codebooks) > 1 else next(iter(codebooks)),
            "tensor_storage": {name: _storage(name, grid) for name, grid in grids.items()},
        }

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Fragments:
        require(
            not {"su", "sv"} & tensors.keys(),
            "it has su or sv, the packed signs of exllamav3's first weeks. Get a newer conversion, with suh and svh.",
        )
        trellis = take(tensors, "trellis", torch.int16, (None, None, None))
        across, down, words = trellis.shape
        require(
            words % 16 == 0 and 1 <= words // 16 <= 8,
            f"its tiles have {words} words; lowbit reads whole bits from 1 to 8, 16 words each.",
        )
        require(
            across > 0 and down > 0 and across % 8 == 0 and down % 8 == 0,
            f"its {across} x {down} tiles of 16 x 16 are no whole blocks of 128 inputs and outputs.",
        )
        suh, svh = (
            _finite(take(tensors, name, torch.float16, (16 * tiles,)), name)
            for name, tiles in (("suh", across), ("svh", down))
        )
        bits = words // 16
        return Fragments(bits, _codebook(tensors), _unpacked(trellis, bits), suh, svh)


def _codebook(tensors: Mapping[str, Tensor]) -> Codebook:
    """Which codebook the tags name."""
    named = [name for name in _TAGS if name in tensors]
    require(len(named) <= 1, f"it has {' and '.join(named)}, but a layer has one codebook. Download the folder again.")
    for name in named:
        tag = tensors[name]
        require(tag.dtype == torch.int32 and tag.numel() == 1, f"tensor {name} must be one int32, not {tag.dtype}.")
        found = int(tag.item()) & 0xFFFFFFFF
        require(
            found == _TAGS[name],
            f"{name} is {found:#x}, a codebook that lowbit does not know; it reads {_TAGS[name]:#x}.",
        )
    return named[0] if named else "3inst"


def _finite(vector: Tensor, name: str) -> Tensor:
    require(bool(torch.isfinite(vector).all()), f"{name} is not finite. Download the folder again.")
    return vector


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., 256] as int16 [..., 16 bits]: a stream, highest bit first, in words of 32 bits."""
    planes = codes.numpy()[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint8) & 1
    stream = np.packbits(planes.reshape(*codes.shape[:-1], -1), axis=-1)
    return torch.from_numpy(stream.view(">u4").astype("<u4").view(np.int16))


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """`_packed` undone."""
    stream = words.contiguous().numpy().view("<u4").astype(">u4").view(np.uint8)
    planes = np.unpackbits(stream, axis=-1).reshape(*words.shape[:-1], 256, bits)
    return torch.from_numpy(planes @ (1 << np.arange(bits - 1, -1, -1)).astype(np.uint8))


def _storage(name: str, grid: FragmentGrid) -> dict[str, Any]:
    """What `tensor_storage` says of a layer."""
    n, k = grid.shape
    fields = {
        "trellis": Array((k // 16, n // 16, 16 * grid.bits), torch.int16),
        "suh": Array((k,), torch.float16),
        "svh": Array((n,), torch.float16),
    }
    if grid.values in _TAGS:
        fields[grid.values] = Array((), torch.int32)
    stored = {
        f"{name}.{field}": {
            "shape": list(array.shape),
            "n_bytes": array.nbytes,
            "dtype": str(array.dtype).removeprefix("torch."),
            "torch_dtype": str(array.dtype).removeprefix("torch."),
        }
        for field, array in fields.items()
    }
    named = {f"{grid.values}_multiplier": _TAGS[grid.values]} if grid.values in _TAGS else {}
    return {"stored_tensors": stored, "quant_format": "exl3", "bits_per_weight": grid.bits} | named
