"""How far a storable value can be from a weight: all that a worst-case bound needs to know of a code.

Optional: a code that tells its cells gets a bound beside its measured loss, others do not.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from lowbit.core.parts import Code
from lowbit.core.records import Side


@runtime_checkable
class BoundedCells(Protocol):
    """A code of single weights whose nearest values are never farther than a known distance, short of clamping."""

    def half_widths(self, side: Side, columns: Tensor) -> Tensor | None:
        """The largest |weight - value| within the code's range, broadcastable to [N, len(columns)]."""
        ...


def half_widths(code: Code, side: Side, columns: Tensor) -> Tensor | None:
    """Those of any code; None where it does not tell."""
    return code.half_widths(side, columns) if isinstance(code, BoundedCells) else None
