"""What each token of a text says about a model, alone and beside its reference.

    nats  = -log q(next token),    kl = sum_v p(v) (log p(v) - log q(v)),    agrees = argmax p == argmax q

with q the model's prediction and p the reference's. Both models see a window one after the other and their logits
are compared at once, so nothing of the size of the text times the vocabulary is ever stored. Logarithms and sums are
taken in float64, some rows at a time: the KL of a good 8-bit model, 1e-5 nats, drowns in float32's rounding.

Memory: each model's logits of one window (of 2048 tokens of shorter ones), 4 x length x vocabulary bytes, and about
0.5 GB of float64 chunks.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, LowbitError

Progress = Callable[[int, int], None]
"""Called with the windows done and their number."""

_BATCH = 2048
"""Tokens of short windows that run together."""

_CHUNK = 1 << 24
"""Logits held in float64 at a time."""


@dataclass(frozen=True, eq=False)
class TokenMeasures:
    """Per predicted token, each [windows, length - 1]: float64, `agrees` bool; None without a reference."""

    nats: Tensor
    reference_nats: Tensor | None = None
    kl: Tensor | None = None
    agrees: Tensor | None = None


def measure_tokens(
    model: Any, windows: Tensor, reference: Any | None = None, progress: Progress | None = None
) -> TokenMeasures:
    """Run the model, and the reference beside it, over windows [count, length] of token ids.

    model, reference: called with `input_ids` [B, length], they answer with `.logits` [B, length, vocabulary].
    Raises LowbitError naming the window in which logits are NaN or infinite, BadRequest where vocabularies differ.
    """
    found: list[dict[str, Tensor]] = []
    done = 0
    with ExitStack() as held:
        for one in (model, reference):
            if one is not None:
                held.enter_context(_evaluating(one))
        for batch in torch.split(windows, max(1, _BATCH // windows.shape[1])):
            logits = _logits(model, batch, "model", done)
            beside = None if reference is None else _logits(reference, batch, "reference", done)
            found.append(_compare(logits, beside, batch[:, 1:]))
            done += len(batch)
            if progress is not None:
                progress(done, len(windows))
    return TokenMeasures(**{name: rows.view(len(windows), -1) for name, rows in _joined(found).items()})


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without gradients and dropout; the model's own mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _logits(model: Any, windows: Tensor, which: str, first: int) -> Tensor:
    """Predictions of every token of the windows but their first: [count, length - 1, vocabulary]."""
    logits = model(input_ids=windows.to(model.device), use_cache=False).logits[:, :-1]
    finite = torch.isfinite(logits).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise LowbitError(
            f"The {which}'s logits are NaN or infinite in evaluation window {first + int((~finite).nonzero()[0])} "
            "(counted from 0). Look for such values in its weights, or load it in float32 if it runs in float16."
        )
    return logits


def _compare(windows: Tensor, reference: Tensor | None, targets: Tensor) -> dict[str, Tensor]:
    """The fields of `TokenMeasures` for some windows' logits, each [count * (length - 1)]."""
    if reference is not None and reference.shape != windows.shape:
        raise BadRequest(
            f"The reference predicts {reference.shape[-1]} tokens, the model {windows.shape[-1]}: they do not share a "
            "vocabulary. Give the model it was quantized from."
        )
    parts = []
    logits, target = windows.flatten(0, 1), targets.flatten()
    beside = None if reference is None else reference.flatten(0, 1)
    step = max(1, _CHUNK // logits.shape[1])
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        q = _log_softmax(logits[rows])
        parts.append({"nats": _nats(q, target[rows])})
        if beside is not None:
            p = _log_softmax(beside[rows].to(q.device))
            parts[-1] |= {
                "reference_nats": _nats(p, target[rows]),
                "kl": (p.exp() * (p - q)).sum(-1).cpu(),
                "agrees": (p.argmax(-1) == q.argmax(-1)).cpu(),
            }
    return _joined(parts)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), dim=-1)


def _nats(log_probability: Tensor, target: Tensor) -> Tensor:
    return -log_probability.gather(-1, target.to(log_probability.device)[:, None])[:, 0].cpu()
