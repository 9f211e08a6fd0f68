"""The values that a scalar code can give each weight of a slab.

A code with tiles of one weight and codes of a few bits is known by decoding every code once; no scalar code needs to
offer its levels to the searches that want them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.fields import Bits
from lowbit.core.parts import Code
from lowbit.core.records import Side
from lowbit.core.stored import Relaying

_MOST_BITS = 8


class Levels(NamedTuple):
    """values: [N, w, L], ascending in L; codes: [N, w, L] uint8, the code of each."""

    values: Tensor
    codes: Tensor


def has_levels(code: Code, shape: tuple[int, int]) -> bool:
    """Whether each weight of a layer [N, K] has a code of its own, of at most 8 bits."""
    return code.tile == (1, 1) and _bits(code, shape) <= _MOST_BITS


def require_levels(part: object, code: Code, shape: tuple[int, int], instead: str) -> None:
    """Raise BadRequest unless `has_levels`; `part` names who asks, `instead` what to use."""
    require(
        has_levels(code, shape),
        f"{type(part).__name__} needs to know the levels of single weights, at most {2**_MOST_BITS} of them; "
        f"{type(code).__name__} (tiles of {code.tile[0]} x {code.tile[1]}) has none such. {instead}",
    )


def levels(code: Code, side: Side, columns: Tensor, shape: tuple[int, int]) -> Levels:
    """The levels of the columns [w] of a layer [N, K], for a code that has them."""
    every = torch.arange(2 ** _bits(code, shape)).to(torch.uint8)
    codes = every.expand(shape[0], len(columns), -1)
    values = code.decode(codes.flatten(1), side, columns.repeat_interleave(len(every))).view(codes.shape)
    if bool((values[..., 1:] >= values[..., :-1]).all()):
        return Levels(values, codes)
    ascending = values.sort(dim=-1, stable=True)
    return Levels(ascending.values, ascending.indices.to(torch.uint8))


def _bits(code: Code, shape: tuple[int, int]) -> int:
    """Bits of a weight's code; more than any code of single weights has where it is none."""
    if isinstance(code, Relaying):
        return code.bits
    field = code.fields(shape).get("codes")
    return field.bits if isinstance(field, Bits) and field.shape == shape else 32 * _MOST_BITS
