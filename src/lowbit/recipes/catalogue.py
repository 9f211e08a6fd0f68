"""The named methods, and making one from a name and the settings a user typed."""

import difflib
import inspect
from collections.abc import Callable, Mapping

from lowbit.core.errors import BadRequest
from lowbit.core.recipe import Recipe, to_dict
from lowbit.recipes.beside import easyquant, lorc, lq_lora, owq, quantease_outlier, spqr
from lowbit.recipes.calibrated import boa, qronos, rsq
from lowbit.recipes.incoherent import exl3, qtip, quip, quip_sharp, trellis
from lowbit.recipes.scalar import optq, rtn
from lowbit.recipes.serial import from_dict

_METHODS: tuple[Callable[..., Recipe], ...] = (
    rtn,
    optq,
    quip,
    quip_sharp,
    qtip,
    exl3,
    trellis,
    owq,
    quantease_outlier,
    spqr,
    easyquant,
    lorc,
    lq_lora,
    qronos,
    rsq,
    boa,
)
CATALOGUE: dict[str, Callable[..., Recipe]] = {function.__name__: function for function in _METHODS}


def make_recipe(name: str, settings: Mapping[str, object] | None = None) -> Recipe:
    """The recipe `name` with `settings`; raises BadRequest naming the nearest recipe or setting where unknown."""
    if name not in CATALOGUE:
        raise BadRequest(f"No recipe named {name!r}.{_nearest(name, CATALOGUE)} `lowbit recipes` lists them all.")
    known = inspect.signature(CATALOGUE[name]).parameters
    for setting in settings or {}:
        if setting not in known:
            raise BadRequest(
                f"Recipe {name} has no setting {setting!r}.{_nearest(setting, known)} It has: {', '.join(known)}."
            )
    return from_dict(to_dict(CATALOGUE[name](**(settings or {}))))  # which checks the type of every field


def _nearest(word: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(close)}?" if close else ""
