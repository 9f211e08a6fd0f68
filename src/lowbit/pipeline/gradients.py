"""Which outputs the loss minds: one backward pass of the original model over the calibration windows.

The loss is the summed negative log likelihood of the windows' own next tokens, so the gradients of a layer's outputs
are those of the empirical Fisher information. A batch's gradients go straight into the statistics that read them and
are dropped; only the reductions are kept. The whole model is in memory at once, in float32, and nothing is spilled:
this is for models that fit.

Cost: three times a forward pass over the windows; S T N floats for each layer while a batch runs.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.errors import BadRequest
from lowbit.core.parts import Statistic
from lowbit.pipeline.activations import batches
from lowbit.pipeline.capture import Group
from lowbit.pipeline.observe import States
from lowbit.pipeline.source import SourceModel


def gather_gradients(
    source: SourceModel, windows: Tensor, wanted: Mapping[str, Statistic], progress: Callable[[int], None]
) -> States:
    """The states of statistics by layer name, each having seen the gradients of its layer in all windows [n, T]."""
    source.load(source.model, "")
    source.model.tie_weights()
    states: States = {}
    for batch in batches(*windows.shape):
        for name, (k, gradient) in _output_gradients(source.model, windows[batch], wanted).items():
            if not bool(torch.isfinite(gradient).all()):
                raise BadRequest(
                    f"{name}: gradients hold NaN or Inf in one of the windows {batch.start} to {batch.stop - 1}. "
                    "Look at that window's text, or at the model's weights."
                )
            key = Group((name,)), wanted[name]
            state = states.get(key)
            state = wanted[name].init(k) if state is None else state
            states[key] = wanted[name].update(state, {"output_gradients": gradient})
        progress(batch.stop)
    source.release(source.model)
    return states


def _output_gradients(model: nn.Module, ids: Tensor, wanted: Mapping[str, Statistic]) -> dict[str, tuple[int, Tensor]]:
    """Inputs K and gradients [t, N] of those layers that any token reached."""
    outputs: dict[str, tuple[int, Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[name] = args[0].shape[-1], output

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
    return {name: (k, gradient.reshape(-1, gradient.shape[-1])) for (name, (k, _)), gradient in pairs}
