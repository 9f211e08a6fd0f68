"""GPTQ checkpoints, as AutoGPTQ began them and GPTQModel, transformers and vLLM read them.

    qweight  int32 [K b / 32, N]  codes, a bit stream down the inputs     scales  float16 [G, N]
    qzeros   int32 [G, N b / 32]  zero points, along the outputs          g_idx   int32 [K]  each input's group

Version 1 stores zero - 1 and its readers add 1 to whole words, so a zero point of 0 would carry into its neighbour:
it is refused here, and version 2, which stores zero itself, holds it. Sources: the files and readers of GPTQModel 7.7.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require
from lowbit.exchange.format import as_float16, check_scales, take
from lowbit.exchange.integers import Grid, Integers, integers_of, layer_of
from lowbit.packing import pack_words, unpack_words

_BITS = (2, 3, 4, 8)
_VERSIONS = {1: "gptq", 2: "gptq_v2"}


@dataclass(frozen=True)
class Gptq:
    """version: 1, which everything reads, or 2, which GPTQModel reads."""

    version: Literal[1, 2] = 1

    method = "gptq"
    key = "qweight"
    fields = frozenset({"qweight", "qzeros", "scales", "g_idx"})
    settings_file = "quantize_config.json"
    seen = staticmethod(integers_of)
    layer = staticmethod(layer_of)

    @property
    def name(self) -> str:
        return _VERSIONS[self.version]

    @property
    def holds(self) -> str:
        zeros = ", no zero point of 0" if self.version == 1 else ""
        return f"integers of 2, 3, 4 or 8 bits with float16 scales, by rows or groups, in any order{zeros}"

    def objection(self, layer: Integers) -> str | None:
        n, k = layer.shape
        if layer.bits not in _BITS:
            return f"it has {layer.bits} bits"
        if n * layer.bits % 32 or k * layer.bits % 32:
            return f"at {layer.bits} bits, [{n}, {k}] does not fill whole 32-bit words both ways"
        if as_float16(layer.scale) is None:
            return f"its scales are {layer.scale.dtype} and do not fit float16"
        if self.version == 1 and bool((layer.zero == 0).any()):
            return "it has zero points of 0"
        return None

    def tensors(self, layer: Integers) -> dict[str, Tensor]:
        return {
            "qweight": pack_words(layer.codes, layer.bits).T.contiguous(),
            "qzeros": pack_words((layer.zero - self._offset).T.contiguous(), layer.bits),
            "scales": layer.scale.half().T.contiguous(),
            "g_idx": layer.group_of.int(),
        }

    def config(self, grids: Mapping[str, Grid], left: Sequence[str]) -> dict[str, Any]:
        common, _ = Counter(map(_settings, grids.values())).most_common(1)[0]
        dynamic: dict[str, dict[str, Any]] = {f"-:^{re.escape(name)}$": {} for name in left}
        for name, grid in grids.items():
            if _settings(grid) != common:
                dynamic[f"+:^{re.escape(name)}$"] = dict(_settings(grid))
        config = {"quant_method": "gptq", **dict(common), "checkpoint_format": self.name, "lm_head": False}
        return config | {"true_sequential": True, "pack_dtype": "int32"} | ({"dynamic": dynamic} if dynamic else {})

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Integers:
        scale = check_scales(take(tensors, "scales", None, (None, None)).T.contiguous())
        n, groups = scale.shape
        qweight = take(tensors, "qweight", torch.int32, (None, n))
        k, bits = _inputs(config, tensors, len(qweight))
        qzeros = take(tensors, "qzeros", torch.int32, (groups, -(-n * bits // 32)))
        zero = unpack_words(qzeros, bits, n).T.contiguous()
        require(
            self.version == 2 or not bool((zero == (1 << bits) - 1).any()),
            f"a zero point is stored as {(1 << bits) - 1}, which some readers of version 1 take for {1 << bits} and "
            "others for 0. Get a version 2 checkpoint.",
        )
        return Integers(
            bits,
            unpack_words(qweight.T.contiguous(), bits, k),
            scale,
            zero + self._offset,
            _groups_of(config, tensors, k, groups),
        )

    @property
    def _offset(self) -> int:
        return 1 if self.version == 1 else 0


def version_of(config: Mapping[str, Any]) -> Gptq:
    """The version that a `quantization_config` names; raises BadRequest for another."""
    named = config.get("checkpoint_format", config.get("format", "gptq"))
    versions = {name: version for version, name in _VERSIONS.items()}
    require(named in versions, f"checkpoint_format is {named!r}; lowbit reads {' and '.join(versions)}.")
    return Gptq(2) if versions[named] == 2 else Gptq(1)


def _settings(grid: Grid) -> tuple[tuple[str, Any], ...]:
    size = -1 if grid.groups == 1 else grid.group_size
    settings = {"bits": grid.bits, "group_size": size, "desc_act": not grid.in_order, "sym": grid.symmetric}
    return tuple(settings.items())


def _inputs(config: Mapping[str, Any], tensors: Mapping[str, Tensor], words: int) -> tuple[int, int]:
    """K and the bits of a layer whose codes take so many words; layers may differ where the configuration says so."""
    bits = config.get("bits")
    if "g_idx" in tensors and "dynamic" in config:
        bits = 32 * words // max(1, len(tensors["g_idx"]))
    if not isinstance(bits, int) or bits not in _BITS:
        raise BadRequest(f"bits is {bits!r}; lowbit reads {', '.join(map(str, _BITS))} of GPTQ.")
    k = 32 * words // bits
    require(k * bits == 32 * words and k > 0, f"its {words} words a column are no whole number of {bits}-bit integers.")
    return k, bits


def _groups_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], k: int, groups: int) -> Tensor:
    if "g_idx" not in tensors:
        require(not config.get("desc_act"), "desc_act is true, but tensor g_idx is missing. Download the folder again.")
        require(k % groups == 0, f"its {groups} groups do not divide its {k} inputs.")
        return torch.arange(k) // (k // groups)
    g_idx = take(tensors, "g_idx", torch.int32, (k,)).long()
    require(
        bool(((g_idx >= 0) & (g_idx < groups)).all()),
        f"g_idx goes from {int(g_idx.min())} to {int(g_idx.max())}, but there are {groups} groups.",
    )
    return g_idx
