"""The machines of a Ray cluster as workers.

A call asks for as many cores as every machine has and for the memory that it was forecast to take: it has a machine
to itself, the smallest one if they differ, and uses all cores of it. Ray finds the place, moves what was shared there,
and repeats a call whose machine was lost; functions are pure, so that the repeated call returns the same bytes.

Floating-point sums depend on the libraries that take them and on the instructions that a processor has. Machines
that differ from this one in either are refused: what they return would be as good, but not the same.

Bytes moved: arguments of `share` once to every machine that needs them; results once, to this process.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import numba
import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util import register_serializer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from lowbit.core.errors import BadRequest, LowbitError, require
from lowbit.version import VERSION

_REPEATS = 5
"""Of a call whose worker dies, before the run gives up."""

_PATIENCE = 10
"""Seconds for the cluster's head to answer."""
_PROGRAM = 600_000_000
"""Bytes of a worker with everything imported that has done nothing yet."""

R = TypeVar("R")


@dataclass(frozen=True)
class Machine:
    """One machine of the cluster. memory: bytes that Ray may give away."""

    node: str
    address: str
    cores: int
    memory: int


@contextmanager
def connected(address: str) -> Iterator["RayCluster"]:
    """The cluster at `address`: `auto` for the one that this machine is part of, `HOST:PORT` of its head.

    Raises BadRequest where there is none, or where its machines would not compute the same as this one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadRequest(
            f"--cluster {address}: no Ray cluster answers there ({error}). Start one with `ray start --head`."
        ) from error
    try:
        _pack_tensors()
        machines = _machines()
        require(bool(machines), f"--cluster {address}: no machine of the cluster has a processor to give.")
        _check_builds(machines)
        yield RayCluster(machines)
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class RayCluster:
    """Its machines; where work is sent (see `lowbit.pipeline.workers`)."""

    machines: tuple[Machine, ...]

    @property
    def cores(self) -> int:
        """Of a call: all that the smallest machine has."""
        return min(machine.cores for machine in self.machines)

    @property
    def places(self) -> int:
        """How many calls run at a time."""
        return sum(machine.cores // self.cores for machine in self.machines)

    def require(self, memory: int, what: str) -> None:
        most = max(machine.memory for machine in self.machines)
        needed = _PROGRAM + memory
        require(
            needed <= most,
            f"--cluster: {what} takes {needed / 1e9:.2f} GB, and the largest machine has {most / 1e9:.2f} GB to give. "
            "Add a larger one, or fewer tokens a window.",
        )

    def share(self, value: Any) -> Any:
        return ray.put(value)

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]], memory: int) -> Iterator[R]:
        call = ray.remote(_called).options(
            name=function.__name__, num_cpus=self.cores, memory=_PROGRAM + memory, max_retries=_REPEATS
        )
        under_way: deque[Any] = deque()
        for arguments in calls:
            under_way.append(call.remote(function, self.cores, *arguments))
            if len(under_way) > self.places:
                yield _result(under_way.popleft(), function.__name__)
        while under_way:
            yield _result(under_way.popleft(), function.__name__)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT, for which Ray would wait many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _PATIENCE).close()


def _result(promise: Any, what: str) -> Any:
    try:
        return ray.get(promise)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise LowbitError(
            f"--cluster: `{what}` did not end, {1 + _REPEATS} times tried: {str(error).partition(chr(10))[0]} "
            "Nothing finished is lost. Look at the machines' memory, then go on with --resume."
        ) from error


def _called(function: Callable[..., R], cores: int, *arguments: Any) -> R:
    """A call, on the machine where it runs."""
    _pack_tensors()
    torch.set_num_threads(cores)
    numba.set_num_threads(min(cores, len(os.sched_getaffinity(0))))
    return function(*arguments)


def _machines() -> tuple[Machine, ...]:
    nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    found = []
    for node in nodes():
        offered = node["Resources"]
        if node["Alive"] and offered.get("CPU", 0) >= 1:
            memory = int(offered.get("memory", 0))
            found.append(Machine(node["NodeID"], node["NodeManagerAddress"], int(offered["CPU"]), memory))
    return tuple(found)


def _check_builds(machines: tuple[Machine, ...]) -> None:
    """Raise BadRequest naming a machine that would not compute the same as this one."""
    asked = [
        ray.remote(build)
        .options(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node, soft=False))
        .remote()
        for machine in machines
    ]
    here = build()
    for machine, promise in zip(machines, asked, strict=True):
        there = _result(promise, "build")
        differing = {name: found for name, found in there.items() if found != here[name]}
        require(
            not differing,
            f"--cluster: {machine.address} has {_listed(differing)}, this machine has "
            f"{_listed({name: here[name] for name in differing})}; the result would depend on who computes what. "
            "Install the same versions, and leave out machines with other processors.",
        )


def build() -> dict[str, str]:
    """What the bytes of a result depend on: versions, and the widest instructions."""
    versions = {name: version(name) for name in ("torch", "transformers", "numba", "numpy")}
    return {"lowbit": VERSION, **versions, "instructions": torch.backends.cpu.get_cpu_capability()}


def _listed(build: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {found}" for name, found in build.items())


def _pack_tensors() -> None:
    """Send tensors as arrays: torch would send all of what a view is a view of, and copy it twice on the way."""
    register_serializer(Tensor, serializer=_array, deserializer=_tensor)


def _array(tensor: Tensor) -> tuple[np.ndarray, torch.dtype, torch.Size]:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy(), tensor.dtype, tensor.shape


def _tensor(packed: tuple[np.ndarray, torch.dtype, torch.Size]) -> Tensor:
    data, dtype, shape = packed
    tensor = torch.empty(shape, dtype=dtype)
    tensor.view(-1).view(torch.uint8).numpy()[:] = data
    return tensor
