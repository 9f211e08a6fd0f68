"""What lowbit asks of another tool's format of safetensors folders."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lowbit.core.errors import require
from lowbit.core.layer import QuantizedLayer
from lowbit.exchange.integers import SCALE_TYPES


class Gridded(Protocol):
    """What a format sees in a layer [N, K]: `Integers`, or trellis codes as `Fragments`."""

    @property
    def grid(self) -> Any:
        """What a configuration must know of the layer: all but its numbers."""
        ...


Seen = TypeVar("Seen", bound=Gridded)


class Format(Protocol[Seen]):
    """A format whose layers are stored as a few tensors each, `PREFIX.field`, without `PREFIX.weight`.

    name: as users type it. method: the `quant_method` of config.json. holds: what it can store, to say in an error.
    key: the field that every quantized layer has; fields: all there may be. settings_file: where else its readers look
    for the `quantization_config`; None for nowhere.
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
    @property
    def settings_file(self) -> str | None: ...

    def seen(self, layer: QuantizedLayer) -> Seen:
        """What the format sees in a layer; raises BadRequest saying why where that is not all there is to it."""
        ...

    def layer(self, seen: Seen, origin: str) -> QuantizedLayer:
        """The layer of lowbit that stands for the same weights; origin: the name of its recipe, which is unknown.

        Raises BadRequest where lowbit has none.
        """
        ...

    def objection(self, layer: Seen) -> str | None:
        """Why the layer cannot be stored exactly; None where it can."""
        ...

    def tensors(self, layer: Seen) -> dict[str, Tensor]:
        """The tensors that store a layer to which there is no objection, by field."""
        ...

    def config(self, grids: Mapping[str, Any], left: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config`; left: names of matrices inside decoder blocks that are not quantized.

        Raises BadRequest where layers differ in a way that the format cannot say.
        """
        ...

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Seen:
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
