"""Coarse scales of small blocks around any code of single rows: a row's blocks become alike before it is encoded.

    value = scale_block v,     scale = 2^(low + step q),  q of few bits,  v a value of the code inside

so that one codebook serves blocks of different sizes. A block's scale is the storable one nearest to its largest
weight, chosen from the original weights; the code inside is fitted to W / scale.

Bits per weight: those of the code inside, and bits / block_size + 64 / (N K).
Paper: GPTVQ (arXiv 2402.15319), blockwise normalisation. Differs from its code: one range of scales for the layer.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.codes.lookup import Lookup, working
from lowbit.codes.vector import VectorCodebook
from lowbit.core.errors import BadRequest, divisors_near, require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.parts import encode_tiles
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side


@dataclass(frozen=True)
class BlockScaled:
    """code: with tiles of one row. block_size: columns that share a scale, whole tiles. bits: of a scale, 1 to 8."""

    code: VectorCodebook | Lookup
    block_size: int = 64
    bits: int = 4

    def __post_init__(self) -> None:
        require(
            self.code.tile[0] == 1 and self.block_size >= 1 and self.block_size % self.code.tile[1] == 0,
            f"BlockScaled(block_size={self.block_size}): must hold whole tiles of one row; those of the code are "
            f"{self.code.tile[0]} x {self.code.tile[1]}.",
        )
        require(1 <= self.bits <= 8, f"BlockScaled(bits={self.bits}): must be 1 to 8. Use 4.")

    @property
    def tile(self) -> tuple[int, int]:
        return self.code.tile

    @property
    def refit_every(self) -> int:
        return self.code.refit_every

    @property
    def linear_in(self) -> tuple[str, ...]:
        return self.code.linear_in

    def check(self, shape: tuple[int, int]) -> None:
        self.code.check(shape)
        if shape[1] % self.block_size:
            raise BadRequest(
                f"BlockScaled(block_size={self.block_size}) does not divide the {shape[1]} inputs of a "
                f"[{shape[0]}, {shape[1]}] layer. Use {divisors_near(self.block_size, shape[1])}."
            )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        return {
            **self.code.fields(shape),
            "block_scale": Bits((shape[0], shape[1] // self.block_size), self.bits),
            "block_range": Array((2,), torch.float32),
        }

    def fit(self, problem: LayerProblem) -> Side:
        weight = problem.weight
        largest = weight.view(len(weight), -1, self.block_size).abs().amax(-1)
        found = largest[largest > 0].log2() if bool(largest.any()) else torch.zeros_like(largest[:1, 0])
        low, high = found.min(), found.max()
        span = torch.stack((low, (high - low) / (2**self.bits - 1))).float().to(weight.dtype)
        codes = ((largest.log2() - span[0]) / span[1].clamp_min(1e-30)).round().clamp(0, 2**self.bits - 1)
        side: Side = {"block_scale": codes, "block_range": span}
        scale = self.scale_of(side, torch.arange(weight.shape[1]))
        sensitivity = None if problem.sensitivity is None else problem.sensitivity * scale.square()
        return {**side, **self.code.fit(replace(problem, weight=weight / scale, sensitivity=sensitivity))}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return self.code.refit(side, target / self.scale_of(side, columns), columns)

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale_of(side, columns)
        codes, values = self.code.encode(target / scale, side, columns)
        return codes, values * scale

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return encode_tiles(self, weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        return self.code.decode(codes, side, columns) * self.scale_of(side, columns)

    def scale_of(self, side: Side, columns: Tensor) -> Tensor:
        """The scale of each weight, [N, w]."""
        span = working(side["block_range"])
        storable = (span[0] + span[1] * torch.arange(2**self.bits, dtype=span.dtype)).exp2()
        return storable[side["block_scale"].long()[:, columns // self.block_size]]
