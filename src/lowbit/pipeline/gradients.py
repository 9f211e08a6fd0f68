"""Which outputs and weights the loss minds: one backward pass of the original model over the calibration windows.

The loss is the summed negative log likelihood of the windows' own next tokens, so the gradients of a layer's outputs
are those of the empirical Fisher information. A batch's gradients go straight into the statistics that read them and
are dropped; only the reductions are kept. The whole model is in memory at once, in float32, wherever a part of the
windows is run, and nothing is spilled: this is for models that fit.

A weight's gradient is g^T x in the outputs' gradients g and the inputs x of that same pass; it is taken window by
window, for squares of single windows are wanted.

Cost: three times a forward pass over the windows, four where weights count; S T N floats for each layer while a batch
runs, and S T K for those whose weights count.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.errors import BadRequest
from lowbit.core.linalg import all_finite
from lowbit.core.parts import Statistic
from lowbit.pipeline.activations import BATCH_TOKENS, batches
from lowbit.pipeline.capture import Group
from lowbit.pipeline.device import CPU, computing_on, fetched, sent
from lowbit.pipeline.observe import States


def gather_gradients(
    model: nn.Module, windows: Tensor, first: int, wanted: Mapping[str, Statistic], device: torch.device = CPU
) -> States:
    """The states of statistics by layer name, each having seen the gradients of its layer in windows [n, T].

    first: the number of the first window; device: where the model runs. A pure function: it may be called anywhere.
    """
    states: States = {}
    weighed = frozenset(name for name, statistic in wanted.items() if "weight_gradients" in statistic.reads)
    with computing_on(device):
        placed = sent(model, device)
        for batch in batches(len(windows), windows.shape[1], 1 if weighed else BATCH_TOKENS):
            for name, seen in _gradients(placed, sent(windows[batch], device), wanted, weighed).items():
                if not all_finite(seen[1]):
                    raise BadRequest(
                        f"{name}: gradients hold NaN or Inf in one of the windows {first + batch.start} to "
                        f"{first + batch.stop - 1}. Look at that window's text, or at the model's weights."
                    )
                key = Group((name,)), wanted[name]
                states[key] = _updated(states.get(key), wanted[name], *seen)
        return fetched(states, device)


def _updated(state: Any, statistic: Statistic, x: Tensor, gradient: Tensor) -> Any:
    """A statistic's state, None for none yet, having seen a layer's inputs [t, K] and outputs' gradients [t, N]."""
    state = statistic.init(x.shape[1]) if state is None else state
    if "output_gradients" in statistic.reads:
        state = statistic.update(state, {"output_gradients": gradient})
    if "weight_gradients" in statistic.reads:
        state = statistic.update(state, {"weight_gradients": (gradient.T @ x)[None]})
    return state


def _gradients(
    model: nn.Module, ids: Tensor, wanted: Iterable[str], weighed: frozenset[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs [t, K] and outputs' gradients [t, N] of those layers that any token reached; none of the inputs' tokens
    where a layer is not in `weighed`."""
    outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            x = args[0].detach()
            outputs[name] = x if name in weighed else x.new_empty(0, x.shape[-1]), output

        return hook

    with ExitStack() as stack, torch.enable_grad():
        # Weights take no gradients; the graph starts at the embedding.
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        stack.callback(embedding.register_forward_hook(lambda m, args, output: output.requires_grad_()).remove)
        for name in wanted:
            stack.callback(model.get_submodule(name).register_forward_hook(keep(name)).remove)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        found = torch.autograd.grad(loss, [output for _, output in outputs.values()])
    pairs = zip(outputs.items(), found, strict=True)
    return {name: (x.flatten(0, -2), gradient.flatten(0, -2)) for (name, (x, _)), gradient in pairs}
