"""MagR: before rounding, the weight of least magnitude among those that give nearly the same outputs.

    minimise over V, row by row or group by group,    1/2 (V - W) H (V - W)^T + alpha max |V|,    H scaled to norm 1

H is nearly singular on real activations, so W can move far at little cost; a smaller range makes a finer grid. What is
minimised has a corner, so each of the `iterations` takes a gradient step and then the proximal map of the maximum,
which clips at the level t where what is cut off sums to alpha (Moreau: the rest of a projection on the l1 ball):

    V <- clip(V - (V - W) H, -t, t),    sum over |v| > t of (|v| - t) = alpha

The step cannot raise the objective, H being of norm 1. It is no invertible map, so it is no transform: it rounds V in
the place of W and is judged by W. `CoordinateDescent(MagR(Ldlq()))` is the paper's dagger: it polishes towards W.

alpha = strength times the root mean square of the weight, so that scaling a layer scales its answer. The paper's 0.001
(a scale a row) and 0.0001 (a group) are strengths of about 0.05 and 0.005 for weights of LLaMA's size, 0.02.

Cost: `iterations` times N K^2 multiply-adds and a sort of each row.
Paper: Zhang, Zhang et al., MagR (arXiv 2406.00800). Differs from its code: alpha relative to the weights; H of all
calibration tokens, not of the last batch; the spectral norm by power iteration, some 1 % too high rather than too low.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lowbit.core.errors import divisors_near, require
from lowbit.core.parts import Code, Rounder
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded

_POWER_STEPS = 100
_MARGIN = 1.01


@dataclass(frozen=True)
class MagR:
    """rounder: rounds the shrunk weight. strength: > 0. iterations: >= 1.

    group_size: columns whose magnitude counts together, "row" or as many as share a scale.
    """

    rounder: Rounder
    strength: float = 0.05
    group_size: int | Literal["row"] = "row"
    iterations: int = 200

    def __post_init__(self) -> None:
        require(self.strength > 0, f"MagR(strength={self.strength}): must be above 0. Use 0.05, 0.005 for groups.")
        require(self.iterations >= 1, f"MagR(iterations={self.iterations}): must be at least 1. Use 200.")
        sized = isinstance(self.group_size, int) and self.group_size >= 1
        require(
            sized or self.group_size == "row",
            f'MagR(group_size={self.group_size!r}): must be a positive number of columns, or "row".',
        )

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        shrunk = replace(problem, weight=self.shrunk(problem))
        return replace(self.rounder.round(shrunk, code), guarantee=None)  # which is about the shrunk weight

    def shrunk(self, problem: LayerProblem) -> Tensor:
        """V, [N, K], in the weight's type."""
        W, group = problem.weight, self._group(problem.shape[1])
        norm = spectral_norm(problem.hessian)
        if norm == 0:
            return W
        H = (problem.hessian / norm).to(W.dtype)
        alpha = self.strength * float(W.double().square().mean().sqrt())
        V = W
        for _ in range(self.iterations):
            V = clipped((V - (V - W) @ H).view(-1, group), alpha).view_as(W)
        return V

    def _group(self, columns: int) -> int:
        group = columns if self.group_size == "row" else self.group_size
        require(
            columns % group == 0,
            f"MagR(group_size={group}) does not divide the {columns} inputs of the layer. "
            f'Use {divisors_near(group, columns)}, or "row".',
        )
        return group


def clipped(x: Tensor, mass: float) -> Tensor:
    """Rows of x [R, g] clipped so that what is cut off each sums to `mass`; zero where that is all there is."""
    size = x.abs().sort(dim=1, descending=True).values
    rank = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    level = (size.cumsum(1) - mass) / rank
    # The levels rise while the next size lies above them: the highest is the one.
    level = level.amax(1, keepdim=True).clamp_min(0)
    return x.clamp(-level, level)


def spectral_norm(H: Tensor) -> float:
    """The largest eigenvalue of H [K, K], positive semi-definite, from above by a per cent."""
    x = torch.randn(len(H), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    largest = 0.0
    for _ in range(_POWER_STEPS):
        x = H.double() @ (x / x.norm())
        largest = float(x.norm())
        if largest == 0:
            return 0.0
    return _MARGIN * largest
