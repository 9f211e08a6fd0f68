"""The midrise grid: 2^b levels at equal distances, half of them below zero and none on it, one scale for the layer.

    value = scale (q - (2^b - 1) / 2),    the outermost levels lie at +- reach times the root mean square of W

Made for weights of one size and no direction, after a rotation: at 2 bits all four levels are used, where a grid with
a level at zero wastes one.

Bits per weight: b + 32 / (N K).
Paper: QuIP (arXiv 2307.13304), algorithm 1 (rho is `reach`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side
from lowbit.kernels.integer import round_slab


@dataclass(frozen=True)
class MidriseGrid:
    """bits: 1 to 8. reach: of the levels, above 0, in root mean squares; QuIP takes 2.4 at every width."""

    bits: int = 2
    reach: float = 2.4

    tile = (1, 1)
    refit_every = 0

    def __post_init__(self) -> None:
        require(isinstance(self.bits, int) and 1 <= self.bits <= 8, f"MidriseGrid(bits={self.bits!r}): must be 1 to 8.")
        require(self.reach > 0, f"MidriseGrid(reach={self.reach}): must be above 0. Use 2.4.")

    def check(self, shape: tuple[int, int]) -> None:
        pass

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {"codes": Bits(shape, self.bits), "scale": Array((1,), torch.float32)}

    def fit(self, problem: LayerProblem) -> Side:
        rms = problem.weight.double().square().mean().sqrt()
        scale = (rms * self.reach / self.middle).float().view(1)
        # No level is zero: only a tiny scale keeps a layer of zeros near zero.
        return {"scale": scale.clamp_min(torch.finfo(torch.float32).tiny).to(problem.weight.dtype)}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return side

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        codes = (target / side["scale"] + self.middle).round().clamp(0, 2 * self.middle)
        return codes.to(torch.uint8), side["scale"] * (codes - self.middle)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale = side["scale"].expand(target.shape)
        zero = torch.full_like(target, self.middle)
        return round_slab(weight, target, feedback, (scale, zero), int(2 * self.middle))

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        return side["scale"] * (codes.to(side["scale"].dtype) - self.middle)

    def half_widths(self, side: Side, columns: Tensor) -> Tensor:
        return side["scale"] / 2

    @property
    def middle(self) -> float:
        return (2**self.bits - 1) / 2
