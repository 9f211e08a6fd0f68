"""What this machine is and how fast it is, measured in about three seconds.

Four speeds bound a run: storage is read a few times, memory is copied by every pass over a block, products make
second moments and feed errors back, and the Viterbi search encodes trellises. Each is measured on the kind of work
that runs do, for at least `seconds`, after one try that pays for compilation; the best of the tries counts, for
whatever else runs here only ever slows one down.
"""

import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from lowbit.core.products import rows_times
from lowbit.kernels import viterbi

_PACKAGES = ("torch", "transformers", "numba", "triton")
# The search of two bits a weight that recipes run by default, on as many sequences as it takes together.
_STATE_BITS, _BITS, _SEQUENCES, _STEPS = 16, 2, 16, 256
# Bytes that make it worth while to give freed memory back, and how many were resident after that, or at any time since.
_MUCH, _lowest = 64 << 20, [0]


@dataclass(frozen=True)
class Machine:
    """memory, free_memory, free_disk: bytes; cores: that this process may use; gpus: name and bytes of memory.

    simd: the widest instructions that torch found; versions: of the packages, None for one that is not installed.
    """

    memory: int
    free_memory: int
    free_disk: int
    cores: int
    simd: str
    gpus: tuple[tuple[str, int], ...]
    versions: dict[str, str | None]


@dataclass(frozen=True)
class Speeds:
    """copy: bytes/s read and written; products, double_products: multiply-adds/s in float32 and float64;
    viterbi: weights/s encoded with 2^16 states and 2 bits, paths closed."""

    copy: float
    products: float
    double_products: float
    viterbi: float


def inspect_machine(folder: Path = Path()) -> Machine:
    """The machine as it is now; `folder` is where the disk is asked for space."""
    memory = psutil.virtual_memory()
    return Machine(
        memory.total,
        memory.available,
        shutil.disk_usage(folder).free,
        _cores(),
        torch.backends.cpu.get_cpu_capability(),
        tuple(_gpu(index) for index in range(torch.cuda.device_count())),
        {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    )


def measure_speeds(seconds: float = 0.5) -> Speeds:
    """Measure for `seconds` > 0 each, on as many threads as torch and numba are set to."""
    return Speeds(
        copy=copy_speed(seconds),
        products=product_speed(torch.float32, seconds),
        double_products=product_speed(torch.float64, seconds),
        viterbi=viterbi_speed(seconds),
    )


def best_time(work: Callable[[], object], seconds: float) -> float:
    """The shortest time that `work` takes, tried for `seconds` after a first time that is not counted."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - started)
        if now >= end:
            return best


def mean_time(work: Callable[[], object], seconds: float) -> float:
    """The mean time that `work` takes, tried likewise: what it takes on a machine as busy as this one is."""
    work()
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or not count:
        work()
        count += 1
    return spent / count


def copy_speed(seconds: float) -> float:
    """Bytes read and written a second by a copy that no cache holds."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_time(lambda: target.copy_(source), seconds)


def product_speed(dtype: torch.dtype, seconds: float, timed: Callable[..., float] = best_time) -> float:
    """Multiply-adds a second of square products, `timed` by `best_time` or `mean_time`."""
    size = 1024
    a = torch.ones(size, size, dtype=dtype)
    return size**3 / timed(lambda: rows_times(a, a), seconds)


def viterbi_speed(seconds: float) -> float:
    """Weights a second through the search that trellis codes encode with."""
    generator = torch.Generator().manual_seed(0)
    trellis = viterbi.Trellis(torch.randn(1 << _STATE_BITS, 1, generator=generator), _BITS)
    targets = torch.randn(_SEQUENCES, _STEPS, 1, generator=generator)
    return targets.numel() / best_time(lambda: viterbi.tail_biting(targets, trellis), seconds)


def return_freed_memory() -> None:
    """Give the operating system back what is free, where this process has grown by much since: what is given back has
    to be got again, which took a fifth of a run on small layers. glibc keeps freed pieces below 32 MB, which add up to
    gigabytes."""
    process = psutil.Process()
    resident = process.memory_info().rss
    if resident - _lowest[0] > _MUCH and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
        resident = _lowest[0] = process.memory_info().rss
    _lowest[0] = min(_lowest[0], resident)


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu(index: int) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.name, properties.total_memory


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
