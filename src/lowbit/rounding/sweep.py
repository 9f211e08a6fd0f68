"""One sweep over all columns of a layer, tile by tile, with the pull of the error on each kept up to date.

The pull on the columns b of a tile is (left H)_b, where left = W - W_hat. A step there, W_hat_b += s, changes it for
all columns by -s H_b. Steps of a slab are carried to its later tiles at once and to the others by the product that
opens the next slab, so a sweep is one product a slab and nothing drifts: N K^2 multiply-adds, memory-bound only within
slabs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit.rounding.feedback import spans, whole_tiles

_SLAB = 128

Move = Callable[[int, slice, Tensor], Tensor]
"""The step [R, w] to take in a tile, from its number, its columns and the pull [R, w] on them."""


def sweep(left: Tensor, H: Tensor, width: int, move: Move) -> None:
    """Move through all tiles of `width` columns, writing into left [R, K]; H: [K, K]."""
    number = 0
    for slab in spans(0, len(H), whole_tiles(_SLAB, width)):
        pull = left @ H[:, slab]
        for tile in spans(slab.start, slab.stop, width):
            own, rest = slice(tile.start - slab.start, tile.stop - slab.start), slice(tile.stop - slab.start, None)
            step = move(number, tile, pull[:, own])
            left[:, tile] -= step
            pull[:, rest] -= step @ H[tile, slab][:, rest]
            number += 1


def tile_inverses(H: Tensor, width: int) -> list[Tensor]:
    """The pseudo-inverse of each diagonal tile of H, zero where nothing is known of its columns."""
    return [torch.linalg.pinv(H[tile, tile], hermitian=True) for tile in spans(0, len(H), width)]
