"""What lowbit asks of another tool's format of safetensors folders."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.exchange.integers import SCALE_TYPES, Grid, Integers


class Format(Protocol):
    """A format whose layers are stored as a few tensors each, `PREFIX.field`, without `PREFIX.weight`.

    name: as users type it. method: the `quant_method` of config.json. holds: what it can store, to say in an error.
    key: the field that every quantized layer has; fields: all there may be.
    """

    @property
    def name(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def holds(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def fields(self) -> frozenset[str]: ...

    def objection(self, layer: Integers) -> str | None:
        """Why the layer cannot be stored exactly; None where it can."""
        ...

    def tensors(self, layer: Integers) -> dict[str, Tensor]:
        """The tensors that store a layer to which there is no objection, by field."""
        ...

    def config(self, grids: Mapping[str, Grid], left: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config`; left: names of matrices inside decoder blocks that are not quantized.

        Raises BadRequest where layers differ in a way that the format cannot say.
        """
        ...

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Integers:
        """A layer from its tensors, by field, believing none of them; raises BadRequest saying what is wrong."""
        ...


def take(tensors: Mapping[str, Tensor], field: str, dtype: torch.dtype | None, shape: Sequence[int | None]) -> Tensor:
    """A layer's tensor, which must have this type (None: any floating point) and this shape (None: any size)."""
    require(field in tensors, f"tensor {field} is missing. Download or copy the folder again.")
    found = tensors[field]
    fits = len(found.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, found.shape, strict=True)
    )
    typed = found.is_floating_point() if dtype is None else found.dtype == dtype
    wanted = ["any" if size is None else size for size in shape]
    require(
        fits and typed,
        f"tensor {field} is {found.dtype} {list(found.shape)}, but must be {dtype or 'floating point'} {wanted}.",
    )
    return found


def check_scales(scale: Tensor) -> Tensor:
    """The scales, which must be finite, positive and of a type that lowbit stores."""
    require(
        scale.dtype in SCALE_TYPES, f"its scales are {scale.dtype}. lowbit reads {', '.join(SCALE_TYPES.values())}."
    )
    values = scale.float()
    require(bool((torch.isfinite(values) & (values > 0)).all()), "a scale is not a finite positive number.")
    return scale


def as_float16(scale: Tensor) -> Tensor | None:
    """Scales in float16; None where one would change."""
    half = scale.half()
    return half if torch.equal(half.to(scale.dtype), scale) else None
