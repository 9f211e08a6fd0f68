"""lowbit: a Hugging Face causal language model in, the most accurate low-bit model for a given number of bits out.

    lowbit.quantize   make a checkpoint         lowbit.Recipe    how one layer is quantized
    lowbit.load       load one                  lowbit.recipes   the published methods, each a function
    lowbit.evaluate   measure a model

Importing lowbit makes transformers able to load its checkpoints. transformers has no discovery of plug-ins, and one
that is not registered leaves its user with an error at best; so that is done at once, everything else when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowbit.integrations.transformers import register
from lowbit.version import VERSION as __version__

if TYPE_CHECKING:
    from lowbit import recipes as recipes
    from lowbit.core.recipe import Recipe as Recipe
    from lowbit.evaluation.evaluate import evaluate as evaluate
    from lowbit.integrations.loading import load as load
    from lowbit.pipeline.quantize import quantize as quantize

__all__ = ["Recipe", "__version__", "evaluate", "load", "quantize", "recipes"]

_HOMES = {
    "Recipe": "lowbit.core.recipe",
    "evaluate": "lowbit.evaluation.evaluate",
    "load": "lowbit.integrations.loading",
    "quantize": "lowbit.pipeline.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


register()
