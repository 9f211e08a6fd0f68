"""An accelerator that is none: tensors that say they are on it, computed by the processor.

An operation on tensors of both sides raises, as on a real one, and so does reading one as if it lay in the processor's
memory; what is computed are real numbers, the processor's own, so a whole run on it must give the processor's bytes.
Every dispatched operation passes through here while the mode is on.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy:0")  # a type that torch knows and for which it loads no driver

_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _There(torch.Tensor):
    """A tensor on the pretended accelerator. held: its numbers."""

    @staticmethod
    def __new__(cls, held):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        tensor.held = held
        return tensor

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _computed(function, args, dict(kwargs or {}))


class Pretended(TorchDispatchMode):
    """While it is on, what is asked of `DEVICE` is done. moved: how often something was moved to it."""

    def __init__(self):
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        self.moved += function is _MOVES[0] and _named(kwargs) == DEVICE
        return _computed(function, args, kwargs)


def _named(kwargs):
    named = kwargs.get("device")
    return None if named is None else torch.device(named)


def _computed(function, args, kwargs):
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    there = [one for one in tensors if isinstance(one, _There)]
    # A number without dimensions may come from anywhere.
    if there and function not in _MOVES and any(one.dim() for one in tensors if not isinstance(one, _There)):
        raise RuntimeError(f"{function}: tensors on two devices")
    named = _named(kwargs)
    if named is not None:
        kwargs["device"] = torch.device("cpu")
    found = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if function._schema.name.endswith("_") and not function._schema.name.endswith("__"):
        return args[0]
    on_it = named == DEVICE if named is not None else bool(there)
    return tree_map(lambda one: _There(one) if on_it and isinstance(one, torch.Tensor) else one, found)


def _held(value):
    return value.held if isinstance(value, _There) else value
