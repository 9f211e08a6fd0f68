"""The machines of a Ray cluster as workers.

A call asks for as many cores as every machine has and for the memory that it was forecast to take: it has a machine
to itself, the smallest one if they differ, and uses all cores of it. One that computes on an accelerator asks for one,
and for its share of the cores, so that a machine with eight takes eight such calls. Ray finds the place, moves what was
shared there, and repeats a call whose machine was lost; functions are pure, so that the repeated call returns the same
bytes.

Floating-point sums depend on the libraries that take them, on the instructions that a processor has and on the kind of
accelerator. Machines that differ in any are refused: what they return would be as good, but not the same.

Bytes moved: each tensor of what is shared once to every machine that needs it, however often it is shared; results
once, to this process.
"""

import functools
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from lowbit.pipeline.device import CPU, accelerators, require_room
from lowbit.pipeline.pieces import Shared, Sharing
from lowbit.pipeline.workers import Needs
from lowbit.version import VERSION

_REPEATS = 5
"""Of a call whose worker dies, before the run gives up."""

_PATIENCE = 10
"""Seconds for the cluster's head to answer."""
_PROGRAM = 600_000_000
"""Bytes of a worker with everything imported that has done nothing yet."""
_SEES_ALL = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1", "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES": "1"}
"""A worker process sees all GPUs of its machine and each call chooses its own: so one process can serve many calls."""

R = TypeVar("R")


@dataclass(frozen=True)
class Machine:
    """One machine of the cluster. memory: bytes that Ray may give away; gpus: how many it may, too."""

    node: str
    address: str
    cores: int
    memory: int
    gpus: int


@contextmanager
def connected(address: str) -> Iterator["RayCluster"]:
    """The cluster at `address`: `auto` for the one that this machine is part of, `HOST:PORT` of its head.

    Raises BadRequest where there is none, or where its machines would not compute the same as this one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": _SEES_ALL})
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
    sharing: Sharing = field(default_factory=lambda: Sharing(ray.put))

    def _fitting(self, needs: Needs) -> list[tuple[int, Machine]]:
        """How many calls each machine takes at a time, those that take any."""
        if needs.device != CPU:
            return [(machine.gpus, machine) for machine in self.machines if machine.gpus]
        cores = min(machine.cores for machine in self.machines)
        return [(machine.cores // cores, machine) for machine in self.machines]

    def resources(self, needs: Needs) -> dict[str, float]:
        """What Ray is asked for, for one call."""
        cores = min(max(1, machine.cores // calls) for calls, machine in self._fitting(needs))
        return {"num_cpus": cores, "num_gpus": int(needs.device != CPU), "memory": _PROGRAM + needs.memory}

    def kind(self, device: torch.device) -> str:
        if device == CPU:
            return "cpu"
        require(
            device.index is None,
            f"--device {device}: on a cluster each call is given one of its own. Use --device {device.type}.",
        )
        return self._accelerator[0]

    @functools.cached_property
    def _accelerator(self) -> tuple[str, int]:
        """Name and bytes of memory of the cluster's accelerators; BadRequest where there are none, or several kinds."""
        having = [machine for machine in self.machines if machine.gpus]
        require(bool(having), "--device: no machine of the cluster has a GPU to give. Use --device cpu.")
        kinds: dict[tuple[str, int], str] = {}
        for machine, found in zip(having, _asked(accelerators, having), strict=True):
            require(
                len(found) >= machine.gpus,
                f"--device: {machine.address} is to give {machine.gpus} GPUs, and torch finds {len(found)} there. "
                "Install a torch that is built for them, or start Ray there with --num-gpus 0.",
            )
            kinds |= dict.fromkeys(found, machine.address)
        listed = ", ".join(f"{name} of {memory / 1e9:.1f} GB ({at})" for (name, memory), at in kinds.items())
        require(
            len(kinds) == 1,
            f"--device: the cluster has {listed}; the result would depend on who computes what. "
            "Leave all but one kind out.",
        )
        return next(iter(kinds))

    def require(self, needs: Needs, what: str) -> None:
        most = max(machine.memory for _, machine in self._fitting(needs))
        needed = _PROGRAM + needs.memory
        require(
            needed <= most,
            f"--cluster: {what} takes {needed / 1e9:.2f} GB, and the largest machine has {most / 1e9:.2f} GB to give. "
            "Add a larger one, or fewer tokens a window.",
        )
        if needs.device != CPU:
            require_room(*self._accelerator, needs.memory, what)

    def share(self, value: Any) -> Any:
        return self.sharing.share(value)

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]], needs: Needs) -> Iterator[R]:
        resources, places = self.resources(needs), sum(at_a_time for at_a_time, _ in self._fitting(needs))
        call = ray.remote(_called).options(name=function.__name__, max_retries=_REPEATS, **resources)
        under_way: deque[Any] = deque()
        for arguments in calls:
            under_way.append(call.remote(function, resources["num_cpus"], *arguments))
            if len(under_way) > places:
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
    given = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    if given and torch.cuda.is_available():
        torch.cuda.set_device(int(given[0]))
    try:
        return function(*(one.whole(_fetched) if isinstance(one, Shared) else one for one in arguments))
    finally:
        torch.cuda.empty_cache()  # the next call there may be another process's


def _fetched(references: tuple[Any, ...]) -> list[Tensor]:
    return ray.get(list(references))


def _machines() -> tuple[Machine, ...]:
    nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    found = []
    for node in nodes():
        offered = node["Resources"]
        if node["Alive"] and offered.get("CPU", 0) >= 1:
            memory = int(offered.get("memory", 0))
            gpus = int(offered.get("GPU", 0))
            found.append(Machine(node["NodeID"], node["NodeManagerAddress"], int(offered["CPU"]), memory, gpus))
    return tuple(found)


def _asked(function: Callable[[], R], machines: Sequence[Machine]) -> list[R]:
    """What a function returns on each machine."""
    promises = [
        ray.remote(function)
        .options(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node, soft=False))
        .remote()
        for machine in machines
    ]
    return [_result(promise, function.__name__) for promise in promises]


def _check_builds(machines: tuple[Machine, ...]) -> None:
    """Raise BadRequest naming a machine that would not compute the same as this one."""
    here = build()
    for machine, there in zip(machines, _asked(build, machines), strict=True):
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
