"""The hidden states between blocks, for all calibration windows: [samples, tokens, width] float32.

Up to a budget they lie in memory; beyond it in a file mapped into memory, which the operating system pages out
when memory is short, so the rest of the code sees one tensor either way.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowbit.formats.files import minding_space

BATCH_TOKENS = 2048
"""Run through a block together: enough for full speed, few enough that activations stay small beside weights."""
ATTENTION_PAIRS = 1 << 22
"""Of query and key, of all windows that run through a block together, where attention is looked at."""
MOST_PARTS = 16
"""Of the windows, which are summed apart and then together: as many machines can share in the calibration."""


def store(shape: tuple[int, int, int], budget: int, path: Path) -> Tensor:
    """An uninitialised tensor of `shape`, in memory if its bytes fit in `budget`, else mapped to `path`."""
    count = math.prod(shape)
    if 4 * count <= budget:
        return torch.empty(shape)
    _reserve(path, 4 * count)
    return torch.from_file(str(path), shared=True, size=count, dtype=torch.float32).view(shape)


@dataclass(eq=False)
class Room:
    """Where hidden states lie. left: bytes of the budget that are still free; folder: for what does not fit."""

    left: int
    folder: Path

    def store(self, shape: tuple[int, int, int], name: str) -> Tensor:
        """`store` within what is left of the budget; `name` is of the file, if it takes one."""
        needed = 4 * math.prod(shape)
        taken = needed if needed <= self.left else 0
        self.left -= taken
        return store(shape, taken, self.folder / name)


def _reserve(path: Path, nbytes: int) -> None:
    """Take the file's room on the disk now: where it runs out under a mapped file, the process dies without a word."""
    if sys.platform == "linux":
        with minding_space(path), path.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)


def batches(samples: int, length: int, tokens: int = BATCH_TOKENS) -> Iterator[slice]:
    """Windows run through a block together: a fixed number of tokens, for the same sums on every machine."""
    size = max(1, tokens // length)
    return (slice(start, min(start + size, samples)) for start in range(0, samples, size))


def parts(samples: int, length: int, tokens: int = BATCH_TOKENS) -> Iterator[slice]:
    """Windows whose sums are taken together: as many batches for each, a number that the calibration alone decides."""
    whole = list(batches(samples, length, tokens))
    size = -(-len(whole) // MOST_PARTS)
    return (slice(whole[i].start, whole[min(i + size, len(whole)) - 1].stop) for i in range(0, len(whole), size or 1))
