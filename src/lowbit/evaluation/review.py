"""A finished run looked at beside the model it came from: what a report adds to the record of a run.

Both models are loaded once, measured on the same windows, and let go on from the same beginnings of held-out text,
always with the likeliest token; where they first part is what a reader sees of the divergence.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.evaluation.evaluate import Model, Opened, evaluate, held_out_windows, open_model
from lowbit.evaluation.tokens import Progress

_PROMPTS = 3
_PROMPT_TOKENS = 32
_WRITTEN_TOKENS = 64
_NO_LOOPS = 4
"""Tokens of a run that is not written twice: small models that always take the likeliest token go round in circles."""


def review(
    folder: Path,
    reference: Model,
    *,
    text: str = "stdlib",
    length: int | None = None,
    windows: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`measures` (`Measures.to_dict`) and `continuations` (prompt, original, quantized) of a lowbit checkpoint.

    reference: the model it was quantized from. text, length, windows, progress: as in `evaluate`.
    """
    quantized, original = open_model(folder), open_model(reference)
    cut = held_out_windows(quantized, text, length)[:windows]
    measures = evaluate(quantized, text=cut, reference=original, progress=progress).to_dict()
    return {"measures": measures | {"text": text}, "continuations": continuations(quantized, original, cut)}


def continuations(quantized: Opened, original: Opened, windows: Tensor) -> list[Mapping[str, str]]:
    """How both models go on from the beginnings of a few windows [count, length] of token ids."""
    tokenizer = quantized.tokenizer()
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
