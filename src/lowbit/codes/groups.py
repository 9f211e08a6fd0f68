"""Which columns share side information: groups of so many, a whole row, or the whole layer."""

from typing import Literal

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, divisors_near, require

GroupSize = int | Literal["row", "tensor"]


def check_group_size(part: object, group_size: GroupSize) -> None:
    """Raise BadRequest unless it is a number of columns, "row" or "tensor"; `part` names who was given it."""
    sized = isinstance(group_size, int) and not isinstance(group_size, bool) and group_size >= 1
    require(
        sized or group_size in ("row", "tensor"),
        f'{type(part).__name__}(group_size={group_size!r}): must be a positive number of columns, "row" or "tensor".',
    )


def check_divides(part: object, group_size: GroupSize, shape: tuple[int, int]) -> None:
    """Raise BadRequest where groups do not fill the columns of a layer [N, K], naming two sizes that do."""
    n, k = shape
    if not isinstance(group_size, int) or k % group_size == 0:
        return
    raise BadRequest(
        f"{type(part).__name__}(group_size={group_size}) does not divide the {k} inputs of a [{n}, {k}] layer. "
        f'Use {divisors_near(group_size, k)}, or "row".'
    )


def side_shape(group_size: GroupSize, shape: tuple[int, int]) -> tuple[int, int]:
    """How many rows and groups of columns of a layer [N, K] have side information of their own."""
    if group_size == "tensor":
        return 1, 1
    return shape[0], 1 if group_size == "row" else shape[1] // group_size


def group_of(group_size: GroupSize, columns: Tensor) -> Tensor:
    """The group of each column, int64."""
    return columns // group_size if isinstance(group_size, int) else torch.zeros_like(columns)


def grouped(x: Tensor, rows: int, groups: int) -> Tensor:
    """x [N, w] as the weights of each group, [rows, groups, weights]."""
    return x.reshape(rows, groups, -1)
