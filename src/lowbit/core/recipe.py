"""A recipe: the frozen product of parts. It has no behaviour; `quantize_layer` is what is done with it."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lowbit.core.errors import BadRequest, require
from lowbit.core.fields import Field
from lowbit.core.parts import Code, Rounder, Sensitive, Shaped, SideCar, Statistic, Transform, code_at

Refresh = Literal["input", "block"]


@dataclass(frozen=True)
class Recipe:
    """How one layer is quantized.

    name: the method as its users call it. refresh: calibration inputs are computed anew after each group of layers
    that share an input ("input", the papers' true-sequential order) or once per decoder block ("block").
    """

    name: str
    statistic: Statistic
    transform: Transform
    code: Code | Shaped
    rounder: Rounder
    side_car: SideCar | None = None
    refresh: Refresh = "input"

    def __post_init__(self) -> None:
        require(
            self.refresh in ("input", "block"),
            f'Recipe(refresh={self.refresh!r}): must be "input" (after each group of layers that share an input) '
            'or "block" (once per decoder block).',
        )

    def code_at(self, shape: tuple[int, int]) -> Code:
        """The code in the form it takes for a layer [N, K]."""
        return code_at(self.code, shape)

    def check(self, shape: tuple[int, int]) -> None:
        """Raise BadRequest where a layer [N, K] does not fit the parts, or a part not the others."""
        self._check_sensitivity()
        self.transform.check(shape)
        self.code_at(shape).check(shape)
        if self.side_car is not None:
            self.side_car.check(shape)
        self.fields(shape)

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        """Everything a layer [N, K] stores, by name; names are unique over the parts."""
        parts = [self.code_at(shape).fields(shape), self.transform.fields(shape)]
        if self.side_car is not None:
            parts.append(self.side_car.fields(shape))
        merged: dict[str, Field] = {}
        for fields in parts:
            require(
                not merged.keys() & fields.keys(),
                f"Recipe {self.name}: two parts store {merged.keys() & fields.keys()}.",
            )
            merged |= fields
        return merged

    def _check_sensitivity(self) -> None:
        """The sensitivity of single weights is gathered where a part looks at it, and only there."""
        statistic, gathered = type(self.statistic).__name__, "weight_gradients" in self.statistic.reads
        looking = [part for part in _parts(self) if isinstance(part, Sensitive) and part.reads_sensitivity]
        if looking and not gathered:
            raise BadRequest(
                f"Recipe {self.name}: {type(looking[0]).__name__} looks at the sensitivity of single weights, which "
                f"{statistic} does not gather. Use statistic=FisherDiagonal(statistic)."
            )
        if gathered and not looking:
            raise BadRequest(
                f"Recipe {self.name}: {statistic} gathers the sensitivity of single weights, and no part looks at it. "
                'Use another statistic, or a part that does, such as ClusteredLevels(importance="fisher").'
            )


def _parts(part: object) -> Iterator[object]:
    """A part and all parts in it."""
    yield part
    if dataclasses.is_dataclass(part):
        for held in (getattr(part, f.name) for f in dataclasses.fields(part)):
            for one in held if isinstance(held, tuple) else (held,):
                yield from _parts(one)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-ready data: each part its class name under "part" and its fields.

    Fields that hold None are left out, for TOML has no word for it; a part that allows None has it as the default.
    """
    return _plain_fields(recipe)


def _plain_fields(value: Any) -> dict[str, Any]:
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {name: _plain(held) for name, held in fields.items() if held is not None}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"part": type(value).__name__, **_plain_fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
