"""compressed-tensors, format "pack-quantized": what llm-compressor writes and vLLM and transformers read.

    weight_packed      int32 [N, ceil(K b / 32)]  codes, a bit stream along the inputs
    weight_scale       floating point [N, G]      weight_shape  int64 [2] = [N, K]
    weight_zero_point  int32 [ceil(N b / 32), G]  down the outputs; only where asymmetric

The package thinks of signed codes, stored as code + 2^(b-1): which are our unsigned ones. It has no act-order.
Source: the package compressed-tensors 0.20.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require
from lowbit.exchange.format import check_scales, take
from lowbit.exchange.integers import Grid, Integers, integers_of, layer_of
from lowbit.packing import pack_words, unpack_words


@dataclass(frozen=True)
class CompressedTensors:
    name = method = "compressed-tensors"
    key = "weight_packed"
    fields = frozenset({"weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"})
    settings_file = None
    seen = staticmethod(integers_of)
    layer = staticmethod(layer_of)
    holds = "integers of 2 to 8 bits, by rows or groups, columns in order"

    def objection(self, layer: Integers) -> str | None:
        if layer.bits < 2:
            return "it has 1 bit"
        if not layer.grid.in_order:
            return "its groups hold columns that are not neighbours (act-order)"
        return None

    def tensors(self, layer: Integers) -> dict[str, Tensor]:
        tensors = {
            "weight_packed": pack_words(layer.codes, layer.bits),
            "weight_scale": layer.scale.contiguous(),
            "weight_shape": torch.tensor(layer.shape),
        }
        if not layer.grid.symmetric:
            tensors["weight_zero_point"] = pack_words(layer.zero.T, layer.bits).T.contiguous()
        return tensors

    def config(self, grids: Mapping[str, Grid], left: Sequence[str]) -> dict[str, Any]:
        members: dict[str, list[str]] = {}
        for name, grid in grids.items():
            members.setdefault(json.dumps(_arguments(grid)), []).append(name)
        groups = {
            f"group_{index}": {
                "targets": ["Linear"] if len(members) == 1 else names,
                "input_activations": None,
                "output_activations": None,
                "weights": json.loads(arguments),
            }
            for index, (arguments, names) in enumerate(members.items())
        }
        config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
        return config | {
            "quantization_status": "compressed",
            "ignore": ["lm_head", *left],
            "config_groups": groups,
        }

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Integers:
        require("weight_g_idx" not in tensors, "it has weight_g_idx, act-order that the package itself has given up.")
        shape = take(tensors, "weight_shape", torch.int64, (2,)).tolist()
        scale = check_scales(take(tensors, "weight_scale", None, (None, None)).contiguous())
        n, groups = scale.shape
        packed = take(tensors, "weight_packed", torch.int32, (n, None))
        k = shape[1]
        require(
            shape[0] == n and k > 0 and k % groups == 0,
            f"weight_shape is {shape}, but there are scales for {n} rows of {groups} groups.",
        )
        bits = _bits_of(config, tensors, k)
        zero = torch.full((n, groups), 1 << (bits - 1), dtype=torch.uint8)
        if "weight_zero_point" in tensors:
            stored = take(tensors, "weight_zero_point", torch.int32, (-(-n * bits // 32), groups))
            zero = unpack_words(stored.T.contiguous(), bits, n).T.contiguous()
        return Integers(bits, unpack_words(packed, bits, k), scale, zero, torch.arange(k) // (k // groups))


def _arguments(grid: Grid) -> dict[str, Any]:
    arguments: dict[str, Any] = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False}
    if grid.groups == 1:
        return arguments | {"strategy": "channel"}
    return arguments | {"strategy": "group", "group_size": grid.group_size}


def _bits_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], k: int) -> int:
    """The one number of bits in the configuration by which K inputs take the words they take."""
    found = config.get("format")
    require(found == "pack-quantized", f"format is {found!r}; lowbit reads pack-quantized.")
    symmetric = "weight_zero_point" not in tensors
    words = take(tensors, "weight_packed", torch.int32, (None, None)).shape[1]
    stated = {w.get("num_bits") for w in _weights(config) if w.get("type") == "int" and w.get("symmetric") == symmetric}
    fitting = [bits for bits in range(2, 9) if bits in stated and -(-k * bits // 32) == words]
    require(
        len(fitting) == 1,
        f"its {words} words a row {'without' if symmetric else 'with'} zero points are {k} integers of no width that "
        f"config_groups gives for such ({', '.join(sorted(map(str, stated))) or 'none'}).",
    )
    return fitting[0]


def _weights(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the configuration says of weights, group by group."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict):
        raise BadRequest("config_groups must be an object.")
    weights = [group["weights"] for group in groups.values() if isinstance(group, dict) and "weights" in group]
    if len(weights) != len(groups) or not all(isinstance(one, dict) for one in weights):
        raise BadRequest("config_groups must map names to groups that have weights.")
    return weights
