"""Not running what is known: modules of a block whose inputs cannot change any more.

Each stage runs a block from its start, and attention is most of what it runs. Once the layers that feed attention are
quantized and written, what its output projection reads is final: it is kept when it is observed, and from then on the
attention module is that one product,

    attention(hidden) = projection(kept)

in the block's later stages and when its outputs are computed. The same numbers come out, bit for bit. Found for any
module of a block that returns what its last linear layer returns, whatever the architecture; a module that returns
anything else beside it (probabilities, a cache) is run as ever.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.pipeline.architecture import Block
from lowbit.pipeline.capture import Call, run_block


@dataclass(frozen=True)
class Tail:
    """A module of a block that returns what its last linear layer does. module, layer: their full paths; nothings: how
    many None it returns behind that, or None where it returns the tensor alone."""

    module: str
    layer: str
    nothings: int | None


Kept = Mapping[str, Tensor]
"""What layers read, [S, T, K], by path."""


@torch.no_grad()
def find_tails(block: Block, hidden: Tensor, call: Call) -> dict[str, Tail]:
    """The tails of a block's direct children, by layer, seen by running it on `hidden`."""
    outputs: dict[str, list[Any]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: outputs.setdefault(name, []).append(output)

    linears = dict(block.linears())
    children = {f"{block.name}.{name}": module for name, module in block.module.named_children()}
    with ExitStack() as stack:
        for name, module in {**children, **linears}.items():
            stack.callback(module.register_forward_hook(watch(name)).remove)
        run_block(block.module, hidden, call)
    once = {name: found[0] for name, found in outputs.items() if len(found) == 1}
    tails = {}
    for name in children.keys() & once.keys() - linears.keys():
        first, nothings = _split(once[name])
        for layer in linears.keys() & once.keys():
            if layer.startswith(f"{name}.") and _is_same(once[layer], first) and nothings != -1:
                tails[layer] = Tail(name, layer, nothings)
    return tails


def _split(output: Any) -> tuple[Any, int | None]:
    """A module's first output and how many None follow it: None for a tensor alone, -1 where others follow."""
    if not isinstance(output, tuple):
        return output, None
    return output[0], len(output) - 1 if all(other is None for other in output[1:]) else -1


def _is_same(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and a.data_ptr() == b.data_ptr() and a.shape == b.shape


@contextmanager
def replayed(block: Block, tails: Mapping[str, Tail], kept: Kept) -> Iterator[None]:
    """While the body runs `block`, modules whose last layer's inputs are kept are no more than that layer."""
    modules = {f"{block.name}.{name}": module for name, module in block.module.named_modules()}

    def short(tail: Tail) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = modules[tail.layer](kept[tail.layer])
            return output if tail.nothings is None else (output, *[None] * tail.nothings)

        return forward

    with ExitStack() as stack:
        for layer in kept:
            module: Any = modules[tails[layer].module]
            module.forward = short(tails[layer])
            stack.callback(delattr, module, "forward")
        yield
