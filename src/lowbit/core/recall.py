"""What was worked out of a Hessian, remembered for the next layer that has the same one.

Layers that read the same inputs (queries, keys and values; gate and up) are solved one after the other with one and the
same tensor as Hessian. What depends on nothing else is worked out for the first and found for the others. One result is
kept, only as long as its Hessian lives unchanged and only where it is small, so it costs no memory that counts; whether
anything is found changes no result.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import Tensor

R = TypeVar("R")

_LARGEST = 256 << 20


class Recall(Generic[R]):
    """The last result of one kind. Threads may share it: at worst they work out the same twice."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], Hashable, R] | None = None

    def of(self, hessian: Tensor, setting: Hashable, work: Callable[[], R]) -> R:
        """The result of `work` for a Hessian and a setting."""
        last, key = self._last, (setting, hessian._version)  # which counts changes in place
        if last is not None and last[0]() is hessian and last[1] == key:
            return last[2]
        self._last = last = None  # before there is another
        result = work()
        if hessian.nbytes <= _LARGEST:
            self._last = weakref.ref(hessian, self._forget), key, result
        return result

    def _forget(self, dead: "weakref.ref[Tensor]") -> None:
        last = self._last
        if last is not None and last[0] is dead:
            self._last = None
