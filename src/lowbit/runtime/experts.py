"""Mixture-of-experts weights as plain linear layers, one for each expert and projection.

transformers stores the experts of a block as fused parameters, gate_up_proj [E, 2 I, H] and down_proj [E, H, I].
Quantization is a layer's business, so here each expert is three linears again, under the names
`<experts>.<e>.gate_proj`, `up_proj` and `down_proj`, and their module computes what the fused one does:

    y_t = sum over the experts e chosen for token t of  weight_te down_e( act(gate_e x_t) * up_e x_t )
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowbit.core.errors import require

_FUSED = {"gate_up_proj", "down_proj"}


class Expert(nn.Module):
    """down( act(gate x) * up x ). act: the activation, [..., I] to [..., I]."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = gate, up, down, act

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class LinearExperts(nn.ModuleList):
    """The experts of a block; expert e is `self[e]`."""

    @classmethod
    def from_fused(cls, module: nn.Module) -> "LinearExperts":
        """The same experts, their weights views of the fused parameters (on any device, "meta" too).

        Raises BadRequest unless `is_fused_experts(module)`.
        """
        require(
            is_fused_experts(module),
            f"{type(module).__name__}: not a module of fused experts with gate_up_proj [E, 2 I, H] and down_proj "
            "[E, H, I]. Leave it out with --ignore.",
        )
        gate_up, down = module.get_parameter("gate_up_proj"), module.get_parameter("down_proj")
        act = module.get_submodule("act_fn") if "act_fn" in dict(module.named_children()) else vars(module)["act_fn"]
        split = gate_up.shape[1] // 2
        return cls(
            Expert(_linear(gate_up[e, :split]), _linear(gate_up[e, split:]), _linear(down[e]), act)
            for e in range(len(gate_up))
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states: [T, H]; top_k_index, top_k_weights: [T, k], an index of E stands for no expert."""
        out = torch.zeros_like(hidden_states)
        for e in torch.unique(top_k_index).tolist():
            if e < len(self):
                token, rank = torch.where(top_k_index == e)
                y = self[e](hidden_states[token]) * top_k_weights[token, rank, None]
                out.index_add_(0, token, y.to(out.dtype))
        return out

    def fuse_into(self, module: nn.Module) -> None:
        """Give the weights of plain linears back to the fused module they came from."""
        experts = [expert for expert in self if isinstance(expert, Expert)]
        gate_up = [torch.cat([_weight(e.gate_proj), _weight(e.up_proj)]) for e in experts]
        module.register_parameter("gate_up_proj", nn.Parameter(torch.stack(gate_up)))
        module.register_parameter("down_proj", nn.Parameter(torch.stack([_weight(e.down_proj) for e in experts])))


def is_fused_experts(module: nn.Module) -> bool:
    """Whether a module holds exactly the fused parameters above, gate before up, and an activation of its own."""
    parameters = dict(module.named_parameters(recurse=False))
    if parameters.keys() != _FUSED or any(parameter.dim() != 3 for parameter in parameters.values()):
        return False
    gate_up, down = parameters["gate_up_proj"], parameters["down_proj"]
    shapes_fit = gate_up.shape == (len(down), 2 * down.shape[2], down.shape[1])
    has_activation = "act_fn" in dict(module.named_children()) or "act_fn" in vars(module)
    return shapes_fit and has_activation and _is_plain(module)


def _is_plain(module: nn.Module) -> bool:
    """Whether nothing says that the module interleaves gate and up, transposes, normalises, or gates in its own way."""
    facts, gate = vars(module), vars(type(module)).get("_apply_gate")
    own_gate = gate is not None and gate.__module__ == type(module).__module__
    plain = facts.get("is_concatenated", True) and facts.get("has_gate", True)
    return plain and not (own_gate or facts.get("is_transposed") or facts.get("has_post_expert_norm"))


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return linear


def _weight(linear: nn.Module) -> Tensor:
    return linear.get_parameter("weight").detach()
