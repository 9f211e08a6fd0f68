"""Random streams that depend on a seed and a name, never on the order of the work.

A layer gets the same numbers whether it is solved first, last, alone, in another process or after a resume.
"""

import hashlib

import torch


def derived_seed(seed: int, *names: str) -> int:
    """A 63-bit seed from a run's seed and the names of what it is for."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: int, *names: str) -> torch.Generator:
    """A CPU generator of its own for (seed, names)."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))
