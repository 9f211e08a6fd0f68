"""A recipe as plain data and as TOML, both ways without loss.

Every part is a frozen dataclass of plain values, so its data is its class name ("part") and its fields; fields that
hold their default are written too, for a checkpoint must say how it was made even after a default changes.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from typing import Any, get_type_hints

from lowbit import codes, rounding, sidecars, statistics, transforms
from lowbit.core.errors import BadRequest
from lowbit.core.recipe import Recipe, to_dict
from lowbit.recipes.typed import nearest, require_type

_FOLDERS = (statistics, transforms, codes, rounding, sidecars)
PARTS: dict[str, type] = {
    name: part
    for folder in _FOLDERS
    for name, part in vars(folder).items()
    if isinstance(part, type) and dataclasses.is_dataclass(part)
}


def from_dict(data: Mapping[str, Any]) -> Recipe:
    """The recipe that `core.recipe.to_dict` made; raises BadRequest where a part or a field is not known."""
    return _build(Recipe, data, "recipe")


def to_toml(recipe: Recipe) -> str:
    """The recipe as a TOML document."""
    lines: list[str] = []
    _write_table(to_dict(recipe), (), lines)
    return "\n".join(lines).strip() + "\n"


def from_toml(text: str) -> Recipe:
    """The recipe of a TOML document; raises BadRequest where it is not one."""
    try:
        return from_dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"The recipe is not valid TOML: {error}.") from error


def _part(value: Any, path: str) -> Any:
    if isinstance(value, list):
        return tuple(_part(item, f"{path}[{i}]") for i, item in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    name = value.get("part")
    if not isinstance(name, str) or name not in PARTS:
        raise BadRequest(f"{path}: no part named {name!r}.{nearest(str(name), PARTS)} docs/parts.md lists them all.")
    return _build(PARTS[name], {k: v for k, v in value.items() if k != "part"}, f"{path}.{name}")


def _build(part: type, data: Mapping[str, Any], path: str) -> Any:
    known = {f.name for f in dataclasses.fields(part)}
    unknown = sorted(data.keys() - known)
    if unknown:
        raise BadRequest(f"{path}: unknown field {unknown[0]!r}. It has: {', '.join(sorted(known))}.")
    values = {key: _part(value, f"{path}.{key}") for key, value in data.items()}
    hints = get_type_hints(part)
    for key, value in values.items():
        require_type(value, hints[key], f"{path}.{key}")
    try:
        return part(**values)
    except TypeError as error:
        raise BadRequest(f"{path}: {error}.") from error


def _write_table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    if path:
        lines += ["", f"[{'.'.join(path)}]"]
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines += [f"{key} = {_literal(value)}" for key, value in table.items() if key not in nested]
    for key, value in nested.items():
        _write_table(value, (*path, key), lines)


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_literal(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # JSON's escapes are TOML's
    return repr(value)
