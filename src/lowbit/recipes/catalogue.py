"""The named methods, and making one from a name and the settings a user typed."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping

from lowbit.core.errors import BadRequest
from lowbit.core.recipe import Recipe, to_dict
from lowbit.recipes.beside import easyquant, gwq, lorc, lq_lora, owq, quantease_outlier, spqr
from lowbit.recipes.binary import db_llm, gptqt, pb_llm
from lowbit.recipes.calibrated import boa, qronos, rsq
from lowbit.recipes.expression import SLOTS, with_parts
from lowbit.recipes.floats import block_float, dint, llm_fp4, normal_float, nupes, ternary, zeroquant_fp6
from lowbit.recipes.granular import dgq, finequant, slim_llm
from lowbit.recipes.incoherent import exl3, qtip, quip, quip_sharp, trellis
from lowbit.recipes.native import kquant
from lowbit.recipes.nonuniform import gptvq, jlcm, lcq, squeezellm, vptq
from lowbit.recipes.rounded import beam, gpfq, magr, optq_stochastic, quantease
from lowbit.recipes.scalar import optq, rtn
from lowbit.recipes.serial import from_dict

_METHODS: tuple[Callable[..., Recipe], ...] = (
    rtn,
    optq,
    beam,
    quantease,
    gpfq,
    magr,
    optq_stochastic,
    quip,
    quip_sharp,
    qtip,
    exl3,
    trellis,
    owq,
    quantease_outlier,
    spqr,
    easyquant,
    gwq,
    lorc,
    lq_lora,
    qronos,
    rsq,
    boa,
    llm_fp4,
    zeroquant_fp6,
    normal_float,
    block_float,
    dint,
    nupes,
    ternary,
    squeezellm,
    jlcm,
    lcq,
    gptvq,
    vptq,
    gptqt,
    db_llm,
    pb_llm,
    dgq,
    finequant,
    slim_llm,
    kquant,
)
_OTHER_NAMES = {"gptq": "optq", "ldlq": "optq", "quip#": "quip_sharp", "gptaq": "qronos"}
CATALOGUE: dict[str, Callable[..., Recipe]] = {function.__name__: function for function in _METHODS}


def make_recipe(name: str, settings: Mapping[str, object] | None = None) -> Recipe:
    """The recipe `name` with `settings`: arguments of its function, and expressions of parts for any of SLOTS.

        make_recipe("optq", {"bits": 3, "rounder": "Beam(16)"})

    Raises BadRequest naming the nearest recipe or setting where one is unknown.
    """
    if name not in CATALOGUE:
        raise BadRequest(f"No recipe named {name!r}.{_nearest(name, CATALOGUE)} `lowbit recipes` lists them all.")
    known, given = inspect.signature(CATALOGUE[name]).parameters, settings or {}
    for setting in given:
        if setting not in known and setting not in SLOTS:
            raise BadRequest(
                f"Recipe {name} has no setting {setting!r}.{_nearest(setting, [*known, *SLOTS])} It has: "
                f"{', '.join(known)}; any of its parts ({', '.join(SLOTS)}) can be set, too."
            )
    own = {setting: value for setting, value in given.items() if setting in known}
    recipe = from_dict(to_dict(CATALOGUE[name](**own)))  # which checks the type of every field
    parts = {setting: str(value) for setting, value in given.items() if setting not in known}
    return with_parts(recipe, parts) if parts else recipe


def _nearest(word: str, known: Iterable[str]) -> str:
    if word in _OTHER_NAMES:
        return f" Did you mean {_OTHER_NAMES[word]}?"
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(close)}?" if close else ""
