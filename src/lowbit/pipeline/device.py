"""The accelerator that calibration windows run on, where one is asked for.

For a call of `gather` or `advance` the block, a batch at a time and the statistics' states lie on it, and what comes
out is moved back; layers are solved on the processor, where the kernels are.

Sums are taken in another order there, so a run ends on the kind of device on which it began. To repeat it bit for bit,
algorithms are deterministic ones and products are taken in all of float32 (no TF32).
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lowbit.core.errors import require
from lowbit.pipeline.pieces import with_tensors

V = TypeVar("V")

CPU = torch.device("cpu")

_TYPES = ("cpu", "cuda")
# cuBLAS gives the same bits each time only with a workspace of fixed size; its own documentation's value.
_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def device_of(name: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:1`; BadRequest for anything else. It need not be there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    require(
        device.type in _TYPES,
        f"--device {name}: nothing that windows can run on. Use cpu, cuda or cuda:1 (also for AMD); statistics take "
        "float64, which mps does not have.",
    )
    return device


def accelerators() -> tuple[tuple[str, int], ...]:
    """Name and bytes of memory of each accelerator of this machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = (torch.cuda.get_device_properties(index) for index in range(count))
    return tuple((one.name, one.total_memory) for one in found)


def found_here(device: torch.device) -> tuple[str, int]:
    """Name and bytes of memory of an accelerator; BadRequest with what there is where this machine does not have it."""
    found = accelerators()
    number = device.index or 0
    there = "".join(f", cuda:{i} ({name})" for i, (name, _) in enumerate(found))
    require(number < len(found), f"--device {device}: torch does not find it on this machine. There is: cpu{there}.")
    return found[number]


def require_room(name: str, memory: int, needed: int, what: str) -> None:
    """Raise BadRequest where an accelerator of so many bytes has less than needed."""
    require(
        needed <= memory,
        f"--device: {what} takes {needed / 1e9:.2f} GB, and {name} has {memory / 1e9:.2f} GB. "
        "Use --device cpu, or fewer tokens a window.",
    )


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """While the body runs, tensors are made on the device unless it says otherwise, and sums are repeatable."""
    if device == CPU:
        yield
        return
    os.environ.update({name: os.environ.get(name, value) for name, value in _WORKSPACE.items()})
    strict, precision = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
    try:
        with device:
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_float32_matmul_precision(precision)


def sent(value: V, device: torch.device) -> V:
    """A copy of a value with its tensors on the device; the value itself where that is the processor."""
    return value if device == CPU else with_tensors(value, lambda tensor: _placed(tensor, device))


_resident: defaultdict[torch.device, WeakTensorKeyDictionary] = defaultdict(WeakTensorKeyDictionary)


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A parameter stays there as long as it lives here: the next call has the same block."""
    if not isinstance(tensor, nn.Parameter):
        return tensor.to(device)
    there = _resident[device]
    if tensor not in there:
        there[tensor] = tensor.detach().to(device)
    return there[tensor]


def fetched(value: V, device: torch.device) -> V:
    """A copy of a value that was computed on the device, with its tensors on the processor; itself where that is it."""
    return value if device == CPU else with_tensors(value, lambda tensor: tensor.cpu())
