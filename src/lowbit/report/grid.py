"""Layers as a grid: one row per decoder block, one column per matrix.

A layer's name `model.layers.3.self_attn.q_proj` is block 3, matrix `self_attn.q_proj`. Experts of one block share a
cell, which shows the worst of them.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.report import numbers

_OUTSIDE = "outside the blocks"


@dataclass(frozen=True)
class Quantity:
    """What a grid shows of a layer, larger being worse.

    key: in the layer's record, where None stands for nothing to show. position: of a value on the scale of colours.
    shown, brief: the value with its unit, and without.
    """

    key: str
    position: Callable[[float], float]
    shown: Callable[[float], str]
    brief: Callable[[float], str]


def _logarithm(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


RELATIVE_LOSS = Quantity("relative_loss", _logarithm, numbers.share, lambda loss: numbers.digits(100 * loss, 2))
DISTANCE = Quantity("bits_above_limit", float, "{:.2f} bits".format, "{:.2f}".format)


@dataclass(frozen=True)
class Cell:
    """The worst layer of one block and matrix. heat: 0 for the best layer of the grid, 100 for the worst."""

    name: str
    value: float
    members: int
    heat: float


@dataclass(frozen=True)
class Grid:
    """cells: by block, then by matrix; None where there is nothing to show. best, worst: of all layers, as shown."""

    quantity: Quantity
    matrices: tuple[str, ...]
    cells: Mapping[str, Sequence[Cell | None]]
    best: str
    worst: str

    @property
    def shared(self) -> bool:
        """Whether some cell stands for several layers."""
        return any(cell.members > 1 for row in self.cells.values() for cell in row if cell)


def split_name(name: str) -> tuple[str, str]:
    """(block, matrix) of a layer's name, experts under one matrix."""
    match = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    if match is None:
        return _OUTSIDE, name
    return match[1], re.sub(r"\.\d+(?=\.|$)", ".*", match[2])


def worst_first(layers: Sequence[Mapping[str, Any]], quantity: Quantity) -> list[Mapping[str, Any]]:
    """The layers by a quantity, those without it last."""
    return sorted(layers, key=lambda layer: math.inf if layer[quantity.key] is None else -layer[quantity.key])


def layer_grid(layers: Sequence[Mapping[str, Any]], quantity: Quantity) -> Grid:
    """The grid of a quantity, blocks and matrices in the order of the layers."""
    members: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for layer in layers:
        block, matrix = split_name(layer["name"])
        members.setdefault(block, {}).setdefault(matrix, []).append(layer)
    matrices = tuple(dict.fromkeys(matrix for row in members.values() for matrix in row))
    values = [layer[quantity.key] for layer in layers if layer[quantity.key] is not None]
    values = [value for value in values if math.isfinite(quantity.position(value))] or [1.0]
    low, high = min(values), max(values)

    def cell(found: list[Mapping[str, Any]]) -> Cell | None:
        worst = worst_first(found, quantity)[0]
        value = worst[quantity.key]
        if value is None:
            return None
        heat = _heat(*(quantity.position(one) for one in (value, low, high)))
        return Cell(worst["name"], value, len(found), heat)

    cells = {
        block: [cell(row[matrix]) if matrix in row else None for matrix in matrices] for block, row in members.items()
    }
    return Grid(quantity, matrices, cells, quantity.shown(low), quantity.shown(high))


def _heat(position: float, low: float, high: float) -> float:
    return 0.0 if position <= low or low == high else round(100 * (position - low) / (high - low), 1)
