"""What a user wrote against what may stand there: values by the type of their place, names by those there are."""

import difflib
from collections.abc import Iterable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from lowbit.core.errors import BadRequest

_IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "nothing"}


def require_type(value: Any, hint: Any, where: str) -> None:
    """Raise BadRequest where a value may not stand in a field or an argument of this type."""
    if not _fits(value, hint):
        raise BadRequest(f"{where} must be {_in_words(hint)}; {value!r} was given.")


def nearest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean this or that?", with those names that resemble the word; nothing where none does."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value may stand in a field of this type; for a field that holds a part, whether it is that kind."""
    options, kind = get_args(hint), get_origin(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if kind is Literal:
        return value in options
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(item, options[0]) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, float | int)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    """What fits a type: `true or false`, or `a whole number, "row" or "tensor"`."""
    options, kind = get_args(hint), get_origin(hint)
    if kind in (Union, UnionType, Literal):
        said = [f'"{one}"' if isinstance(one, str) else _in_words(one) for one in _flat(hint)]
        return f"{', '.join(said[:-1])} or {said[-1]}" if len(said) > 1 else said[0]
    if kind is tuple:
        return f"a list, each {_in_words(options[0])}"
    return _IN_WORDS.get(hint) or f"a part that is a {hint.__name__}"


def _flat(hint: Any) -> list[Any]:
    """The alternatives of a type, words as themselves."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return [one for option in get_args(hint) for one in _flat(option)]
    return [hint]
