"""lowbit: a Hugging Face causal language model in, the most accurate low-bit model for a given number of bits out.

    lowbit.plan       what a run would do       lowbit.recipes   the published methods, each a function
    lowbit.quantize   make a checkpoint         lowbit.Recipe    how one layer is quantized
    lowbit.load       load one                  lowbit.Calibration, lowbit.Options   on what and how a run works
    lowbit.evaluate   measure a model
    lowbit.export     to another tool's format  lowbit.import_   from another tool's format

Importing lowbit makes transformers able to load its checkpoints, however transformers is imported: it has no discovery
of plug-ins, and one that is not registered leaves its user with an error at best. Neither transformers nor torch is
imported for that; all names above are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowbit.integrations.discovery import import_after
from lowbit.version import VERSION as __version__

if TYPE_CHECKING:
    from lowbit import recipes as recipes
    from lowbit.api import export as export
    from lowbit.api import import_ as import_
    from lowbit.api import plan as plan
    from lowbit.api import quantize as quantize
    from lowbit.core.recipe import Recipe as Recipe
    from lowbit.evaluation.evaluate import evaluate as evaluate
    from lowbit.integrations.loading import load as load
    from lowbit.pipeline.quantize import Calibration as Calibration
    from lowbit.pipeline.quantize import Options as Options

__all__ = [
    "Calibration",
    "Options",
    "Recipe",
    "__version__",
    "evaluate",
    "export",
    "import_",
    "load",
    "plan",
    "quantize",
    "recipes",
]

_HOMES = {
    "Calibration": "lowbit.pipeline.quantize",
    "Options": "lowbit.pipeline.quantize",
    "Recipe": "lowbit.core.recipe",
    "evaluate": "lowbit.evaluation",
    "export": "lowbit.api",
    "import_": "lowbit.api",
    "load": "lowbit.integrations.loading",
    "plan": "lowbit.api",
    "quantize": "lowbit.api",
}


def __getattr__(name: str) -> Any:
    if name == "recipes":
        return import_module("lowbit.recipes")
    if name not in _HOMES:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


import_after("transformers.modeling_utils", "lowbit.integrations.transformers")
