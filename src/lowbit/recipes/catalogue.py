"""The named methods, and making one from a name and the settings a user typed."""

from collections.abc import Callable, Mapping
from typing import get_type_hints

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
from lowbit.recipes.rounded import beam, gpfq, integers, magr, optq_stochastic, quantease
from lowbit.recipes.scalar import optq, rtn
from lowbit.recipes.serial import from_dict
from lowbit.recipes.typed import nearest, require_type

_METHODS: tuple[Callable[..., Recipe], ...] = (
    rtn,
    optq,
    integers,
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
CATALOGUE: dict[str, Callable[..., Recipe]] = {function.__name__: function for function in _METHODS}
OTHER_NAMES = {"gptq": "optq", "quip#": "quip_sharp"}
"""Names of the field for recipes that are listed under another."""
_HINTS = {
    "ldlq": "It is how optq rounds.",
    "gptaq": "It is not here; what it aims at, the original outputs from the inputs there are, is optq with "
    "statistic=CrossMoment.",
}


def method(name: str) -> Callable[..., Recipe]:
    """The function of a recipe, by its name or the field's; raises BadRequest naming the nearest if there is none."""
    known = OTHER_NAMES.get(name, name)
    if known not in CATALOGUE:
        hint = f" {_HINTS[name]}" if name in _HINTS else nearest(name, [*CATALOGUE, *OTHER_NAMES])
        raise BadRequest(f"No recipe named {name!r}.{hint} `lowbit recipes` lists them all.")
    return CATALOGUE[known]


def make_recipe(name: str, settings: Mapping[str, object] | None = None) -> Recipe:
    """The recipe `name` with `settings`: arguments of its function, and expressions of parts for any of SLOTS.

    name: one of CATALOGUE or of OTHER_NAMES.

        make_recipe("optq", {"bits": 3, "rounder": "Beam(16)"})

    Raises BadRequest naming the nearest recipe or setting where one is unknown.
    """
    function = method(name)
    known, given = get_type_hints(function), settings or {}
    del known["return"]
    for setting in given:
        if setting not in known and setting not in SLOTS:
            raise BadRequest(
                f"Recipe {name} has no setting {setting!r}.{nearest(setting, [*known, *SLOTS])} It has: "
                f"{', '.join(known)}; any of its parts ({', '.join(SLOTS)}) can be set, too."
            )
    own = {setting: value for setting, value in given.items() if setting in known}
    for setting, value in own.items():
        require_type(value, known[setting], f"{name}: {setting}")
    recipe = from_dict(to_dict(function(**own)))  # which checks the fields of its parts as well
    parts = {setting: str(value) for setting, value in given.items() if setting not in known}
    return with_parts(recipe, parts) if parts else recipe
