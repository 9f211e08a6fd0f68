"""The main door to a finished checkpoint."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lowbit.core.errors import BadRequest, LowbitError
from lowbit.formats.legality import CONFIG_NAME, check_checkpoint
from lowbit.integrations.hub import resolve_folder
from lowbit.integrations.transformers import LowbitConfig, LowbitQuantizer
from lowbit.recipes import from_dict

_WORK_FOLDER = ".lowbit"


def load(
    folder: str | Path, dtype: torch.dtype | None = None, device_map: str | dict[str, Any] | None = None
) -> PreTrainedModel:
    """The model of a lowbit checkpoint, ready for inference.

    folder: what `lowbit quantize` wrote, or its name on the hub.
    dtype: of everything that is not quantized, and of the activations; None for the type in config.json.
    device_map: as in transformers ("cpu", "auto", {"model.layers.9": "disk", ...}; needs accelerate). What it puts on
        disk comes in when it is needed, codes too: they are read from `folder` again, which must stay.

    Raises BadRequest where the folder is missing, unfinished, not a lowbit checkpoint, damaged, or of a newer format.
    """
    folder = resolve_folder(str(folder))
    _check_finished(folder)
    check_checkpoint(folder, from_dict)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype or "auto",
        device_map=device_map,
        offload_buffers=True,  # codes are buffers
        local_files_only=True,
        output_loading_info=True,
    )
    model, info = loaded
    if missing := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise LowbitError(
            f"{folder} does not hold all of the model; missing or of another shape: {', '.join(missing[:8])}."
        )
    return model


def empty_model(folder: Path) -> PreTrainedModel:
    """The model of a lowbit checkpoint without its weights: on torch's meta device, of type float32.

    Raises BadRequest where the folder is no legal checkpoint.
    """
    check_checkpoint(folder, from_dict)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    LowbitQuantizer(LowbitConfig(**config.quantization_config)).preprocess_model(model)
    return model


def _check_finished(folder: Path) -> None:
    if (folder / CONFIG_NAME).is_file():
        return
    if (folder / _WORK_FOLDER).is_dir():
        raise BadRequest(f"{folder} is unfinished: resume with the same `lowbit quantize` command and --resume.")
    raise BadRequest(f"{folder} has no {CONFIG_NAME}: not a checkpoint. Give the folder that `lowbit quantize` wrote.")
