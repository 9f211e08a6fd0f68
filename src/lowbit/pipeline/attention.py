"""What a block's attention makes of the layers that feed it, without a line about any architecture.

The block runs in its original weights with an attention function of ours in place of the model's own, which keeps
queries, keys (after rotation and whatever else the model does to them), values and probabilities. The outputs of the
linear layers before it are cut out of the gradient graph, so that gradients say which of them feeds what.

    mixing             outputs averaged as values:  mean over the heads of A^T A
    output_curvature   of d outputs of one head, sum over tokens t of J_t^T S J_t, where J_t takes the layer's output
                       to the query, key or value of token t and S is what attention minds there:
                           query  mean of k k^T over the keys it is compared with
                           key    mean of q q^T over the queries that are compared with it, and their heads
                           value  W_h^T W_h, W_h the output projection of its head, averaged over heads that share it

The sum is exact for any map from outputs to queries, linear like a rotation or not like a norm: S = sum_c l_c l_c^T,
and each J_t^T l_c is a product with the transposed Jacobian. The softmax and the causal mask are left out of it.

A layer whose outputs are not whole heads has no curvature; one that feeds more than values (a fused projection) has
no mixing. Cost: d gradients through the map for each layer; the probabilities, S H T^2.
Paper: BoA (arXiv 2406.13474), whose Hessians these make; its code covers the rotary embeddings of Llama.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lowbit.core.errors import BadRequest
from lowbit.core.linalg import one_thread
from lowbit.core.parts import Observable
from lowbit.pipeline.architecture import Block, weight_of
from lowbit.pipeline.capture import Call, run_block

ATTENTION: frozenset[Observable] = frozenset({"attention", "mixing", "output_curvature"})
"""The observables that need attention to be looked at."""


class _Enough(Exception):
    """Raised by the layer that reads attention's output: nothing after it is needed."""


@dataclass(frozen=True, eq=False)
class Attention:
    """Of S windows of T tokens in H heads, of which every H / G share keys and values.

    queries: [S, H, T, d]; keys: [S, G, T, d]; values: [S, G, T, e]; probabilities: [S, H, T, T].
    outputs: of the linear layers before attention, [S, T, N] by name; projection: [M, H e], or None where no linear
    layer reads attention's output.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    probabilities: Tensor
    outputs: Mapping[str, Tensor]
    projection: Tensor | None

    def of(self, name: str, needed: frozenset[Observable]) -> dict[Observable, Tensor]:
        """What `needed` names of a layer, where it is there to be seen."""
        seen: dict[Observable, Tensor] = {}
        if "attention" in needed:
            seen["attention"] = self.probabilities
        fed = [states for states in (self.queries, self.keys, self.values) if self._feeds(name, states)]
        if "mixing" in needed and len(fed) == 1 and fed[0] is self.values:
            a = self.probabilities.flatten(1, 2)
            seen["mixing"] = a.mT @ a / self.probabilities.shape[1]
        if "output_curvature" in needed and fed:
            curvature = [self._curvature(name, states) for states in fed]
            if all(part is not None for part in curvature):
                seen["output_curvature"] = torch.stack([part for part in curvature if part is not None]).sum(0)
        return seen

    def _feeds(self, name: str, states: Tensor) -> bool:
        return name in self.outputs and _gradient(states, self.outputs[name], torch.ones_like(states)) is not None

    def _minded(self, states: Tensor) -> Tensor | None:
        """S of each window and head of `states`, [S or 1, heads, d, d] float64."""
        if states is self.queries:
            return _share(_second_moment(self.keys), self.queries.shape[1])
        if states is self.keys:
            return _mean_of_sharing(_second_moment(self.queries), self.keys.shape[1])
        if self.projection is None:
            return None
        rows = len(self.projection)
        heads = self.projection.double().view(rows, self.queries.shape[1], -1).permute(1, 2, 0)
        return _mean_of_sharing((heads @ heads.mT)[None], self.values.shape[1])

    def _curvature(self, name: str, states: Tensor) -> Tensor | None:
        output, minded, width = self.outputs[name], self._minded(states), states.shape[-1]
        if minded is None or output.shape[-1] % width:
            return None
        with one_thread():
            size, direction = torch.linalg.eigh(minded)
        roots = (direction * size.clamp_min(0).sqrt().unsqueeze(-2)).to(states.dtype)
        total = torch.zeros(output.shape[-1] // width, width, width, dtype=torch.float64)
        for root in roots.unbind(-1):
            pulled = _gradient(states, output, root.unsqueeze(-2).expand_as(states))
            assert pulled is not None
            heads = pulled.reshape(-1, len(total), width).transpose(0, 1)
            total += heads.mT @ heads
        return total


def watch_attention(block: Block, hidden: Tensor, call: Call) -> Attention:
    """Run `block` on hidden states [S, T, width] as far as its attention; BadRequest where it has none like others."""
    outputs: dict[str, Tensor] = {}
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    projections: list[Tensor] = []

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **rest: Any) -> Any:
        weights = _probabilities(q.detach(), k.detach(), mask, rest, block.name)
        found.append((q, k, v, weights))
        return (weights @ _share(v, q.shape[1])).transpose(1, 2).contiguous(), weights

    def cut(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            if found:
                return None
            outputs[name] = output.detach().requires_grad_()
            return outputs[name]

        return hook

    def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if found and args[0].shape[-1] == found[0][2].shape[-1] * found[0][0].shape[1]:
            projections.append(weight_of(module))
            raise _Enough

    with ExitStack() as stack, torch.enable_grad(), suppress(_Enough):
        stack.enter_context(_attention_replaced(attend, block.module))
        for name, module in block.linears():
            stack.callback(module.register_forward_hook(cut(name)).remove)
            stack.callback(module.register_forward_pre_hook(stop).remove)
        run_block(block.module, hidden, call)
    if not found:
        raise BadRequest(
            f"{block.name} ({type(block.module).__name__}) has no attention that can be looked at. "
            "Use a recipe that does not look at attention, such as optq or qronos."
        )
    return Attention(*found[0], outputs, projections[0] if projections else None)


@contextmanager
def _attention_replaced(attend: Callable[..., Any], block: nn.Module) -> Iterator[None]:
    """Let the attention modules in `block` call `attend` in place of what their configuration names."""
    configs = [vars(module)["config"] for module in block.modules() if "config" in vars(module)]
    names = {str(config._attn_implementation) for config in configs} | {"eager"}
    for name in names:
        ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        yield
    finally:
        for name in names:
            ALL_ATTENTION_FUNCTIONS.pop(name)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, rest: Mapping[str, Any], where: str) -> Tensor:
    """softmax(q k^T), [S, H, T, T], with the model's scaling, cap and mask (none: each token sees those before)."""
    if rest.get("s_aux") is not None or rest.get("position_bias") is not None:
        raise BadRequest(f"{where}: attention with sinks or position biases of its own cannot be looked at yet.")
    scaling, cap = rest.get("scaling"), rest.get("softcap")
    scores = q @ _share(k, q.shape[1]).mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def _gradient(of: Tensor, by: Tensor, along: Tensor) -> Tensor | None:
    """Each token's transposed Jacobian times `along`; None where `of` does not depend on `by`."""
    if not of.requires_grad:
        return None
    with torch.enable_grad():
        return torch.autograd.grad(of, by, along, retain_graph=True, allow_unused=True)[0]


def _share(x: Tensor, heads: int) -> Tensor:
    """[S, G, ...] to [S, heads, ...]: each of G repeated for the heads that share it."""
    return x.repeat_interleave(heads // x.shape[1], 1)


def _mean_of_sharing(x: Tensor, groups: int) -> Tensor:
    """[S, H, ...] to [S, groups, ...]: the mean over the heads that share one."""
    return x.view(len(x), groups, -1, *x.shape[2:]).mean(2)


def _second_moment(states: Tensor) -> Tensor:
    """[S, heads, T, d] to the mean over tokens of x x^T, [S, heads, d, d] float64."""
    x = states.detach().double()
    return x.mT @ x / x.shape[2]
