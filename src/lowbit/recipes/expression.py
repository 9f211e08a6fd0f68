"""Parts as a user writes them: `rounder=CoordinateDescent(rounder, passes=2)`.

An expression is a part's name, with arguments where its defaults will not do; arguments are numbers, words in quotes,
None, tuples and other parts. The names of a recipe's parts (statistic, transform, code, rounder, side_car) stand for
those it has, so a part can be put around another: `transform=Chain((transform, StaticOrder))`. It is read, not run.
"""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

from lowbit.core.errors import BadRequest
from lowbit.core.recipe import Recipe, to_dict
from lowbit.recipes.serial import PARTS, from_dict
from lowbit.recipes.typed import nearest

SLOTS = ("statistic", "transform", "code", "rounder", "side_car")


def with_parts(recipe: Recipe, expressions: Mapping[str, str]) -> Recipe:
    """`recipe` with other parts in some of SLOTS; its name tells which.

    Raises BadRequest where an expression cannot be read or its part does not belong there.
    """
    data = to_dict(recipe)
    parts = {slot: _read(f"{slot}={text}", text, data) for slot, text in expressions.items()}
    names = ", ".join(part["part"] if part else f"no {slot}" for slot, part in parts.items())
    merged = {**data, **parts, "name": f"{recipe.name} with {names}"}
    return from_dict({key: value for key, value in merged.items() if value is not None})


def _read(where: str, text: str, recipe: Mapping[str, Any]) -> Any:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise BadRequest(f"{where}: cannot be read ({error.msg}). Write a part, such as Ldlq(damping=0.02).") from None
    return _plain(tree, where, recipe)


def _plain(node: ast.expr, where: str, recipe: Mapping[str, Any]) -> Any:
    """What the expression stands for, as `core.recipe.to_dict` writes it."""
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, bool | int | float | str):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) if isinstance(value, int | float):
            return -value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_plain(item, where, recipe) for item in items]
        case ast.Name(id=name) if name in SLOTS:
            return recipe.get(name)
        case ast.Name(id=name):
            return _part(name, [], {}, where)
        case ast.Call(func=ast.Name(id=name), args=given, keywords=named) if all(word.arg for word in named):
            arguments = [_plain(item, where, recipe) for item in given]
            return _part(name, arguments, {str(w.arg): _plain(w.value, where, recipe) for w in named}, where)
    raise BadRequest(
        f"{where}: {ast.unparse(node)!r} is no part. Write a part's name with arguments that are numbers, words in "
        f"quotes, tuples or parts, such as Ldlq(damping=0.02), or one of {', '.join(SLOTS)} for the recipe's own."
    )


def _part(name: str, given: list[Any], named: dict[str, Any], where: str) -> dict[str, Any]:
    if name not in PARTS:
        raise BadRequest(f"{where}: no part named {name!r}.{nearest(name, PARTS)} docs/parts.md lists them all.")
    fields = [field.name for field in dataclasses.fields(PARTS[name])]
    twice = named.keys() & set(fields[: len(given)])
    if len(given) > len(fields) or twice:
        raise BadRequest(f"{where}: {name} takes {', '.join(fields) or 'no arguments'}, each once.")
    arguments = dict(zip(fields, given, strict=False)) | named
    return {"part": name, **{key: value for key, value in arguments.items() if value is not None}}
