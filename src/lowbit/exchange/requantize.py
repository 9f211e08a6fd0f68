"""Rounding a layer again, for a format that cannot hold its codes.

The weights that the layer stands for, in its own coordinates and with everything kept beside the codes, are rounded to
the nearest values of a simple grid that the format has. Nothing of the calibration is left to weigh errors by: ranges
are searched by squared error. A layer that fits is never touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lowbit.codes import IntegerGrid, KQuant, SearchedRange
from lowbit.core.errors import BadRequest, require
from lowbit.core.layer import QuantizedLayer, quantize_layer
from lowbit.core.parts import Code, Shaped
from lowbit.core.problem import LayerProblem
from lowbit.recipes import rtn

_BITS = {
    "gptq": (2, 3, 4, 8),
    "gptq_v2": (2, 3, 4, 8),
    "compressed-tensors": (2, 3, 4, 5, 6, 7, 8),
    "awq": (4,),
    "gguf": (2, 3, 4, 5, 6, 8),
}
_GROUP_SIZES = (128, 64, 32)
"""The first that divides the inputs of all layers; else rows are whole."""


@dataclass(frozen=True)
class Requantize:
    """grid: what layers are rounded to."""

    grid: Code | Shaped

    @classmethod
    def into(cls, format: str, bits: int, shapes: Sequence[tuple[int, int]]) -> "Requantize":
        """For a format and the shapes of all layers; raises BadRequest where it has no grid of so many bits."""
        if format not in _BITS:
            raise BadRequest(f"Nothing can be rounded again into {format}. Use one of {', '.join(_BITS)}.")
        allowed = _BITS[format]
        require(
            bits in allowed, f"{format} has no grid of {bits} bits to round into. Use {', '.join(map(str, allowed))}."
        )
        if format == "gguf" and bits != 8:
            return cls(KQuant(bits, importance="none", scales="static"))
        if format == "gguf":
            return cls(IntegerGrid(8, 32, symmetric=True, scales="static"))
        dividing = (size for size in _GROUP_SIZES if all(k % size == 0 for _, k in shapes))
        # Symmetric is what vLLM reads of GPTQ and compressed-tensors at every width; AWQ has zero points anyway.
        searched = SearchedRange(exponent=2.0)
        return cls(IntegerGrid(bits, next(dividing, "row"), format != "awq", searched, scales="static"))

    def layer(self, layer: QuantizedLayer) -> QuantizedLayer:
        """The nearest layer of the grid."""
        recipe = replace(rtn(), name=f"{layer.recipe.name}, rounded again", code=self.grid)
        hessian = torch.eye(layer.shape[1], dtype=torch.float64)
        return quantize_layer(LayerProblem(layer.dequantize(), hessian), recipe, torch.Generator())
