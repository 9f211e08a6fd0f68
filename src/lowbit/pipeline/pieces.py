"""A value taken apart: its tensors on one side, everything else on the other, to be put together with the same tensors
elsewhere.

    value = together(rest, tensors)      for      rest, tensors = apart(value)

So a block, a batch or a statistic's state can be moved to an accelerator, or sent to another machine tensor by tensor,
without either knowing what it is made of. A tensor that a value holds twice is one piece. `rest` is a pickle; it never
leaves a run's own processes and is never read from a file.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


class _Packer(pickle.Pickler):
    """Writes the place of each tensor instead of the tensor."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        place = self._places.setdefault(id(obj), len(self.tensors))
        if place == len(self.tensors):
            self.tensors.append(obj)
        return place


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self._tensors[pid]


def apart(value: Any) -> tuple[bytes, list[Tensor]]:
    """Everything of a value but its tensors, and these; the value can be pickled."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    return file.getvalue(), packer.tensors


def together(rest: bytes, tensors: Sequence[Tensor]) -> Any:
    """The value of which `apart` left `rest`, with these tensors in their places."""
    return _Unpacker(io.BytesIO(rest), tensors).load()


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a value with each tensor changed; parameters stay parameters."""
    rest, tensors = apart(value)
    return together(rest, [_like(one, change(one)) for one in tensors])


def _like(before: Tensor, tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor, requires_grad=False) if isinstance(before, nn.Parameter) else tensor


@dataclass(frozen=True, eq=False)
class Shared:
    """A value by reference. rest: as of `apart`; references: to its tensors."""

    rest: bytes
    references: tuple[Any, ...]

    def whole(self, get: Callable[[tuple[Any, ...]], Sequence[Tensor]]) -> Any:
        """The value, with the tensors that `get` returns for the references."""
        return together(self.rest, get(self.references))


class Sharing:
    """Shares values tensor by tensor, each tensor once while it lives: what is shared is replaced, never changed in
    place. put: takes a tensor, returns a reference to it."""

    def __init__(self, put: Callable[[Tensor], Any]) -> None:
        self._put = put
        self._known = WeakTensorKeyDictionary()

    def share(self, value: Any) -> Shared:
        rest, tensors = apart(value)
        for tensor in tensors:
            if tensor not in self._known:
                self._known[tensor] = self._put(tensor)
        return Shared(rest, tuple(self._known[tensor] for tensor in tensors))
