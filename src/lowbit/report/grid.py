"""Layers as a grid: one row per decoder block, one column per matrix.

A layer's name `model.layers.3.self_attn.q_proj` is block 3, matrix `self_attn.q_proj`. Experts of one block share a
cell, which shows the worst of them. The colour runs with the logarithm: losses span decades.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_OUTSIDE = "outside the blocks"


@dataclass(frozen=True)
class Cell:
    """The worst layer of one block and matrix. heat: 0 for the smallest loss of the grid, 100 for the largest."""

    name: str
    relative_loss: float
    members: int
    heat: float


@dataclass(frozen=True)
class Grid:
    """cells: by block, then by matrix; None where a block has no such matrix."""

    matrices: tuple[str, ...]
    cells: Mapping[str, Sequence[Cell | None]]
    smallest: float
    largest: float

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


def loss_grid(layers: Sequence[Mapping[str, Any]]) -> Grid:
    """The grid of the layers' relative losses, blocks and matrices in the order of the layers."""
    members: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for layer in layers:
        block, matrix = split_name(layer["name"])
        members.setdefault(block, {}).setdefault(matrix, []).append(layer)
    matrices = tuple(dict.fromkeys(matrix for row in members.values() for matrix in row))
    losses = [layer["relative_loss"] for layer in layers if layer["relative_loss"] > 0] or [1.0]
    low, high = min(losses), max(losses)

    def cell(found: list[Mapping[str, Any]]) -> Cell:
        worst = max(found, key=lambda layer: layer["relative_loss"])
        return Cell(worst["name"], worst["relative_loss"], len(found), _heat(worst["relative_loss"], low, high))

    cells = {
        block: [cell(row[matrix]) if matrix in row else None for matrix in matrices] for block, row in members.items()
    }
    return Grid(matrices, cells, low, high)


def _heat(loss: float, low: float, high: float) -> float:
    if loss <= low or low == high:
        return 0.0
    return round(100 * math.log(loss / low) / math.log(high / low), 1)
