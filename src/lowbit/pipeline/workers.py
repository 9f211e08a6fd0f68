"""Where a run's work is done: in this process, or on the machines of a cluster.

A run is four pure functions, called on one part after the other, and a driver that keeps what they return:

    gather_gradients(model, windows, wanted) -> states   gradients.py, where a statistic reads gradients
    gather(watched, windows, wanted) -> gathered         observe.py
    advance(watched, windows) -> windows                 observe.py
    solve(layer, seed, weight, state) -> solved          solve.py

So all that has to be known of a cluster is how to call a function there. Results come in the order of the calls and
do not depend on where they were computed, so neither does anything the driver does with them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Protocol, TypeVar

import torch

from lowbit.core.errors import BadRequest
from lowbit.pipeline.device import CPU, found_here, require_room

R = TypeVar("R")


@dataclass(frozen=True)
class Needs:
    """Of one call. memory: bytes; device: where it computes, which on an accelerator takes as many bytes there."""

    memory: int
    device: torch.device = CPU


class Workers(Protocol):
    """Those who do the work."""

    def kind(self, device: torch.device) -> str:
        """What computes for calls that need `device`: `cpu`, or an accelerator's name. Sums depend on it."""
        ...

    def require(self, needs: Needs, what: str) -> None:
        """Raise BadRequest where no machine has what one call needs; `what` says what it is for."""
        ...

    def share(self, value: Any) -> Any:
        """What to pass to `map` in place of a value that several calls need, so that it is sent but once.

        Nor is a tensor of it that was part of another shared value, and lives: none may be changed in place.
        """
        ...

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]], needs: Needs) -> Iterator[R]:
        """What `function` returns for each tuple of arguments, in order.

        function: a pure one of a module; arguments and results can be pickled, and arguments are not changed.
        needs: of one call. Raises what `function` raises.
        """
        ...


class Here:
    """This process: each call is made when its result is asked for."""

    def kind(self, device: torch.device) -> str:
        return "cpu" if device == CPU else found_here(device)[0]

    def require(self, needs: Needs, what: str) -> None:
        """The processor's memory is forecast, not enforced: the operating system may page. An accelerator does not."""
        if needs.device != CPU:
            require_room(*found_here(needs.device), needs.memory, what)

    def share(self, value: Any) -> Any:
        return value

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]], needs: Needs) -> Iterator[R]:
        return starmap(function, calls)


def workers_at(address: str | None) -> AbstractContextManager[Workers]:
    """Those of the Ray cluster at `address` (see `lowbit.pipeline.cluster.connected`), or this process for None."""
    if address is None:
        return nullcontext(Here())
    try:
        from lowbit.pipeline.cluster import connected
    except ImportError as error:
        raise BadRequest(f"--cluster {address}: this needs Ray. Run `pip install lowbit[ray]`.") from error
    return connected(address)
