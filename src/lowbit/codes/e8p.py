"""E8P: eight weights at a time by a shaped piece of the E8 lattice, 2 bits per weight and 1 KiB of table.

    word = signs * pattern +- 1/4,    pattern in (Z + 1/2)^8 positive,    sum of signs * pattern even

The words without their shift lie in D8-hat, the half-integer points of even sum: 256 patterns of magnitudes (all 227
of squared norm up to 10 and 29 of the 56 of norm 12), seven free signs, the eighth following from parity, and one bit
for the shift make 2^16 words, all on E8 + 1/4. Sixteen bits hold eight weights; decoding is a 256-row table and bit
arithmetic. What is left is coded again: at three bits by 256 short points of E8, at four by a second E8P.

    2 bits   W / scale = v              scale = rms / 1.03                  unit Gaussian mean squared error 0.0915
    3 bits   W / scale = v + e / 2.04   scale = rms / 0.98                                                  0.0295
    4 bits   W / scale = v + v' / 3.8   scale = rms / 0.90                                                  0.0084

Bits per weight: bits + 32 / (N K). Made for weights of one Gaussian-like size: chain a rotation before it.

Paper: QuIP# (arXiv 2402.04396), section 4. Differs from the authors' code: patterns are numbered by us and the 29 of
norm 12 are the first in lexicographic order (another choice of equal size changes nothing); the search is exact and
ten times faster; at 4 bits their gains, 1.03 and 3.45, leave 0.0096. Errors were measured on 10^5 Gaussian vectors.
"""

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require
from lowbit.core.fields import Array, Bits, Field
from lowbit.core.parts import encode_tiles
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Side
from lowbit.kernels.e8p import nearest_e8p
from lowbit.kernels.nearest import nearest

GAINS = {2: (1.03, 1.0), 3: (0.98, 2.04), 4: (0.90, 3.8)}
"""bits: (root mean square of the weights in units of the scale, gain of the second stage); see the table above."""


@dataclass(frozen=True)
class E8P:
    """bits: 2, 3 or 4. headroom: above 0, widens the scale against the growth of targets under LDLQ's feedback.

    QuIP# recommends 0.9 in place of 1.03 at 2 bits when rounding with feedback: headroom 1.14.
    """

    bits: int = 2
    headroom: float = 1.0

    def __post_init__(self) -> None:
        require(self.bits in GAINS, f"E8P(bits={self.bits}): must be 2, 3 or 4.")
        require(self.headroom > 0, f"E8P(headroom={self.headroom}): must be above 0. Use 1.0, or 1.14 with Ldlq.")

    tile = (1, 8)
    refit_every = 0

    def check(self, shape: tuple[int, int]) -> None:
        n, k = shape
        if k % 8:
            raise BadRequest(
                f"E8P encodes 8 weights of a row together, which does not divide the {k} inputs of a [{n}, {k}] layer. "
                "Leave the layer out (--ignore) or give it an IntegerGrid or a VectorCodebook along its outputs."
            )

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        n, k = shape
        return {"codes": Bits((n, k // 8, self.bits), 8), "scale": Array((1,), torch.float32)}

    def fit(self, problem: LayerProblem) -> Side:
        rms = problem.weight.double().square().mean().sqrt()
        scale = (rms * self.headroom / GAINS[self.bits][0]).float().view(1)
        # No word is zero: only a tiny scale keeps a layer of zeros near zero.
        return {"scale": scale.clamp_min(torch.finfo(torch.float32).tiny).to(problem.weight.dtype)}

    def refit(self, side: Side, target: Tensor, columns: Tensor) -> Side:
        return side

    def encode(self, target: Tensor, side: Side, columns: Tensor) -> tuple[Tensor, Tensor]:
        left = (target / side["scale"]).reshape(-1, 8)
        codes = [_encode_words(left)]
        if self.bits > 2:
            left = (left - _decode_words(codes[0], left.dtype)) * GAINS[self.bits][1]
            codes.append(_encode_words(left) if self.bits == 4 else _encode_points(left))
        joined = torch.cat(codes, -1).view(len(target), -1, self.bits)
        return joined, self.decode(joined, side, columns)

    def encode_with_feedback(
        self, weight: Tensor, target: Tensor, feedback: Tensor, side: Side, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        return encode_tiles(self, weight, target, feedback, side, columns)

    def decode(self, codes: Tensor, side: Side, columns: Tensor) -> Tensor:
        scale = side["scale"]
        values = _decode_words(codes[..., :2], scale.dtype)
        if self.bits == 3:
            values += points().to(scale)[codes[..., 2].int()] / GAINS[3][1]
        if self.bits == 4:
            values += _decode_words(codes[..., 2:], scale.dtype) / GAINS[4][1]
        return (values * scale).flatten(-2)


def _encode_words(x: Tensor) -> Tensor:
    """uint8 [V, 2] of x [V, 8]."""
    return nearest_e8p(x, _patterns().to(x.dtype), int((_odd() == 0).sum()))


def _decode_words(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., 8] of codes [..., 2] (pattern, sign byte), from the table of all words: one gather instead of 15 passes."""
    return _words(dtype).to(codes.device)[codes[..., 0].int() + 256 * codes[..., 1].int()]


@functools.cache
def _words(dtype: torch.dtype) -> Tensor:
    """`all_words` in another type; 2 MB in float32."""
    return all_words().to(dtype)


@functools.cache
def all_words() -> Tensor:
    """The 2^16 words of E8P, float64 [65536, 8], in the order of pattern + 256 * sign byte."""
    code = torch.arange(1 << 16)
    pattern, signs = code & 255, (code >> 8).to(torch.uint8)
    parity = signs & 127
    for step in (4, 2, 1):
        parity = parity ^ (parity >> step)
    eighth = (parity & 1) ^ _odd()[pattern]
    signs_of_all = (signs & 127) | (eighth << 7)
    negative = (signs_of_all[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).double()
    shift = 0.25 - 0.5 * (signs >> 7).double()
    return _patterns()[pattern] * (1 - 2 * negative) + shift[:, None]


def _encode_points(x: Tensor) -> Tensor:
    """uint8 [V, 1] of x [V, 8]: the nearest of the second stage's points."""
    index, _ = nearest(x, torch.ones_like(x[:1]).expand_as(x), points().to(x.dtype))
    return index.to(torch.uint8)[:, None]


@functools.cache
def _patterns() -> Tensor:
    """[256, 8] magnitudes, float64: those of even sum first, then by norm, then lexicographic."""
    halves = [v for v in itertools.product((1, 3, 5), repeat=8) if sum(x * x for x in v) <= 40]
    outer = [tuple(1 if i in small else 3 for i in range(8)) for small in itertools.combinations(range(8), 3)]
    chosen = sorted(halves + outer[:29], key=lambda v: (sum(v) // 2 % 2, sum(x * x for x in v), v))
    return torch.tensor(chosen, dtype=torch.float64) / 2


@functools.cache
def _odd() -> Tensor:
    """[256] uint8: whether a pattern's sum is odd."""
    return (_patterns().sum(1) % 2).to(torch.uint8)


@functools.cache
def points() -> Tensor:
    """The second stage's points, [256, 8] float64: the origin, the 240 roots of E8, and 15 of the 16 points +-2 e_i."""
    integer = [v for v in itertools.product((-2, 0, 2), repeat=8) if sum(map(abs, v)) in (0, 4)]
    halves = [v for v in itertools.product((-1, 1), repeat=8) if sum(v) % 4 == 0]
    axes = torch.cat((4 * torch.eye(8), -4 * torch.eye(8)[:7]))
    return torch.cat((torch.tensor(integer), torch.tensor(halves), axes)).double() / 2
