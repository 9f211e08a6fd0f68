"""What the processor that numba compiles for can do, and work on several of its cores."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
from numba.core.registry import cpu_target

_WEIGHTS_OF_A_THREAD = 1 << 20


@cache
def has_feature(name: str) -> bool:
    """Whether code is compiled for a processor with the feature of that name in LLVM, such as "avx512f"."""
    return f"+{name}" in _target()[2].split(",")


@cache
def has_fast_deposit() -> bool:
    """Whether bits are deposited by one fast instruction (BMI2; on AMD's first two Zens it is microcode)."""
    return has_feature("bmi2") and _target()[1] not in ("znver1", "znver2")


def in_threads(work: Callable[[int, int], None], pieces: int, weights: int) -> None:
    """work(start, stop) for ranges that make up all pieces, on as many threads as numba has where that pays.

    work: holds no lock. Threads and not numba's parallel loops, which take four times as long to compile as what is
    in them.
    """
    threads = min(pieces, numba.get_num_threads(), weights // _WEIGHTS_OF_A_THREAD)
    if threads <= 1:
        work(0, pieces)
        return
    share = -(-pieces // threads)
    starts = range(0, pieces, share)
    list(_pool(threads).map(work, starts, [min(start + share, pieces) for start in starts]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "lowbit-product")


def _target() -> tuple[str, str, str]:
    """LLVM's triple, processor and features, as numba's own cache of compiled code is keyed by."""
    return cpu_target.target_context.codegen().magic_tuple()
