"""The embedding and the output head, a model's largest tables, read as far as they are needed.

A batch of calibration text looks up a few thousand of a hundred thousand rows, and the head is a product that can be
taken some rows at a time. So neither table is ever in memory as a whole; what is computed is the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ReadRows = Callable[[int, int], Tensor]
"""Rows start to stop - 1 of a table, float32."""

_ROWS_AT_ONCE = 4096


@contextmanager
def looked_up(embedding: nn.Embedding, rows: ReadRows) -> Iterator[None]:
    """While the body runs, the embedding holds the rows that it is asked for, and its ids count among those."""
    whole, padding = embedding.weight, embedding.padding_idx

    def fetch(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids, places = torch.unique(args[0], return_inverse=True)
        found = torch.cat([rows(row, row + 1) for row in ids.tolist()])
        embedding.weight = nn.Parameter(found, requires_grad=False)
        return places, *args[1:]

    embedding.padding_idx = None  # matters to gradients alone, and need not be among the rows
    handle = embedding.register_forward_pre_hook(fetch)
    try:
        yield
    finally:
        handle.remove()
        embedding.weight, embedding.padding_idx = whole, padding


@contextmanager
def multiplied(head: nn.Linear, rows: ReadRows) -> Iterator[None]:
    """While the body runs, the head multiplies by some of its rows after the other."""

    def forward(x: Tensor) -> Tensor:
        starts = range(0, head.out_features, _ROWS_AT_ONCE)
        y = torch.cat([x @ rows(at, min(at + _ROWS_AT_ONCE, head.out_features)).T for at in starts], -1)
        return y if head.bias is None else y + head.bias

    replaced: Any = head
    replaced.forward = forward
    try:
        yield
    finally:
        del replaced.forward
