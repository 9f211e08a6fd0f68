"""How values are spread, in a few counts that a record can hold and a report can draw."""

from typing import Any

import torch
from torch import Tensor

_AT_ONCE = 1 << 20


def histogram(values: Tensor, low: float, high: float, bins: int) -> dict[str, Any]:
    """`counts` of the values in so many equal steps from `low` to `high`; those beyond count in the end bins."""
    counts = torch.zeros(bins, dtype=torch.float64)
    for part in torch.split(values.detach().flatten(), _AT_ONCE):
        counts += torch.histc(part.double().clamp(low, high).cpu(), bins, low, high)
    return {"low": low, "high": high, "counts": [int(count) for count in counts]}


def around_zero(values: Tensor, bins: int = 41) -> dict[str, Any]:
    """The histogram from the largest magnitude below zero to the same above it; the middle bin holds zero."""
    largest = max(float(values.max()), -float(values.min())) or 1.0
    return histogram(values, -largest, largest, bins)
