"""LoRA adapters on top of frozen codes, trained and loaded by PEFT, an extra of lowbit.

    y = W_hat x + (alpha / r) B A x          W_hat stays packed; A and B train

PEFT chooses an adapter's class by the type of the layer below and knows the types it was shipped with; a configuration
can name more, which is what `on_codes` does. What needs the weight as a matrix of floating-point numbers is refused:
starting values taken from it, variants that scale by its norms, merging into it (the sum is no longer the code's).
"""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lowbit.core.errors import BadRequest, require
from lowbit.runtime import QuantizedLinear

try:
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora.layer import Linear
except ImportError as error:
    raise BadRequest(f"Adapters need peft ({error}). Run `pip install lowbit[adapters]`.") from error

_STARTS = (True, False, "gaussian")
_KEEP = "Keep the adapter beside the codes, or merge it into model.dequantize()"


class LoraOnCodes(Linear):
    """LoRA's two matrices beside a QuantizedLinear."""

    def __init__(self, base_layer: QuantizedLinear, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        start = config.init_lora_weights
        require(
            any(start is known or start == known for known in _STARTS),
            f"init_lora_weights={start!r} starts from the weight's values, which are packed codes here. "
            f"Use one of {', '.join(map(repr, _STARTS))}.",
        )
        super().__init__(base_layer, adapter_name, config=config, **kwargs)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], None]:
        """Plain LoRA; PEFT names the variant that it was asked for instead (DoRA, ...)."""
        return {(): None}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise BadRequest(f"An adapter cannot be merged into codes without rounding them again. {_KEEP}.")

    def unmerge(self) -> None:
        raise BadRequest(f"There is no merged adapter: codes take none. {_KEEP}.")

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        # PEFT asks this of the layer below and warns of types that it does not know.
        assert isinstance(module, QuantizedLinear)
        return module.in_features, module.out_features


def on_codes(config: LoraConfig) -> LoraConfig:
    """The same configuration, which now takes lowbit's layers too: `get_peft_model(model, on_codes(config))`."""
    config._register_custom_module({QuantizedLinear: LoraOnCodes})
    return config


def load_adapter(model: PreTrainedModel, folder: str | Path, is_trainable: bool = False) -> PeftModel:
    """`PeftModel.from_pretrained` for a model whose layers are lowbit's; folder: what `save_pretrained` wrote."""
    return PeftModel.from_pretrained(
        model, str(folder), config=on_codes(LoraConfig.from_pretrained(str(folder))), is_trainable=is_trainable
    )
