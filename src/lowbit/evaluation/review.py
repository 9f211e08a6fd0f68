"""A checkpoint looked at beside the model it came from: what a report adds to the record of a run, and all that can be
said of a checkpoint that nobody has a record of.

Both models are measured on the same windows, cut by the original's tokenizer, and let go on from the same beginnings
of held-out text, always with the likeliest token; where they first part is what a reader sees of the divergence.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest
from lowbit.evaluation.evaluate import Opened, evaluate, held_out_windows, open_model
from lowbit.evaluation.tokens import Progress
from lowbit.formats.legality import read_quantization_config

_TEXT = "stdlib"
_PROMPTS = 3
_PROMPT_TOKENS = 32
_WRITTEN_TOKENS = 64
_NO_LOOPS = 4
"""Tokens of a run that is not written twice: small models that always take the likeliest token go round in circles."""


@dataclass(frozen=True)
class Ground:
    """What checkpoints are measured on, so that their numbers compare; None where anything will do.

    reference: the original, by folder or name. text, length, windows: as in `evaluate`.
    """

    reference: str | None = None
    text: str | None = None
    length: int | None = None
    windows: int | None = None

    def holds(self, measures: Mapping[str, Any] | None) -> bool:
        """Whether a record has measures that were taken here."""
        return measures is not None and all(
            value is None or measures.get(name) == value for name, value in asdict(self).items()
        )

    def narrowed(self, measures: Mapping[str, Any]) -> "Ground":
        """The ground of these measures; references stay as they are, which every record may name in its own way."""
        return replace(self, text=measures["text"], length=measures["length"], windows=measures["windows"])


def review(model: str, original: Opened, ground: Ground, progress: Progress | None = None) -> dict[str, Any]:
    """`measures` (`Measures.to_dict`) and `continuations` (prompt, original, quantized) of a quantized model."""
    quantized, cut = open_model(model), _windows(original, ground)
    measures = _measured(quantized, original, ground, cut, progress)
    return {"measures": measures, "continuations": continuations(quantized, original, cut)}


def judge(model: str, original: Opened, ground: Ground, progress: Progress | None = None) -> dict[str, Any]:
    """The record of a checkpoint that is all that is known of it: model (of the original), format, size, measures.

    model: anybody's folder, name on the hub or GGUF file. format: of the tool that wrote it; a lowbit folder's recipes.
    """
    opened, whole = open_model(model), original.size()
    size = opened.size()
    if size is None or whole is None:
        raise BadRequest(f"{model}: its size on disk is not known. Give a folder or a GGUF file.")
    return {
        "model": {
            "source": ground.reference,
            "architecture": type(original.model).__name__,
            "parameters": whole.parameters,
        },
        "format": opened.format or _recipes(opened),
        "size": {"after": size.bytes, "bits_per_weight": size.bits_per_weight or size.bits_per_parameter},
        "measures": _measured(opened, original, ground, _windows(original, ground), progress),
    }


def _windows(original: Opened, ground: Ground) -> Tensor:
    return held_out_windows(original, ground.text or _TEXT, ground.length)[: ground.windows]


def _measured(
    opened: Opened, original: Opened, ground: Ground, cut: Tensor, progress: Progress | None
) -> dict[str, Any]:
    measures = evaluate(opened, text=cut, reference=original, progress=progress).to_dict()
    return measures | {"text": ground.text or _TEXT, "reference": ground.reference}


def _recipes(opened: Opened) -> str:
    """The recipes that a lowbit folder names in its config.json."""
    if opened.folder is None or opened.model.config.to_dict().get("quantization_config") is None:
        return "not quantized"
    names = (str(data["name"]) for data in read_quantization_config(opened.folder).recipes)
    return ", ".join(dict.fromkeys(name.removesuffix("_import") for name in names))


def continuations(quantized: Opened, original: Opened, windows: Tensor) -> list[Mapping[str, str]]:
    """How both models go on from the beginnings of a few windows [count, length] of token ids."""
    tokenizer = original.tokenizer()
    chosen = windows[:: max(1, len(windows) // _PROMPTS)][:_PROMPTS, : min(_PROMPT_TOKENS, windows.shape[1] // 2)]
    return [
        {"prompt": tokenizer.decode(prompt, skip_special_tokens=True)}
        | {
            name: tokenizer.decode(_written(opened, prompt), skip_special_tokens=True)
            for name, opened in (("original", original), ("quantized", quantized))
        }
        for prompt in chosen
    ]


def _written(opened: Opened, prompt: Tensor) -> Tensor:
    """The likeliest tokens after `prompt` [T], as many as the context has room for."""
    context = int(opened.model.config.get_text_config().max_position_embeddings)
    room = min(_WRITTEN_TOKENS, context - len(prompt))
    ids = prompt[None].to(opened.model.device)
    with torch.inference_mode():
        out: Any = opened.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            do_sample=False,
            no_repeat_ngram_size=_NO_LOOPS,
        )
    return out[0, len(prompt) :].cpu()
