"""How good is a model, and how far is it from another?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lowbit.core.errors import BadRequest, require
from lowbit.evaluation.records import Divergence, Measures, Size, as_perplexity, logarithms, over_windows, quantiles
from lowbit.evaluation.size import checkpoint_size, weight_bytes
from lowbit.evaluation.tasks import Tasks
from lowbit.evaluation.tokens import Progress, TokenMeasures, measure_tokens
from lowbit.exchange import gguf_file, import_folder, import_gguf
from lowbit.formats.checkpoint import QUANT_METHOD
from lowbit.formats.shards import Shards
from lowbit.integrations.hub import resolve_folder
from lowbit.integrations.loading import load
from lowbit.pipeline.source import read_config
from lowbit.pipeline.text import evaluation_windows, read_texts, token_stream


@dataclass(frozen=True, eq=False)
class Opened:
    """A model in memory. folder: where it was loaded from; None for one that came loaded.

    format: the tool's whose checkpoint it is, one of `exchange.EXPORTS`, with its weight in that format; a GGUF file's
    folder is `kept` as long as this record.
    """

    model: PreTrainedModel
    folder: Path | None
    format: str | None = None
    weight: Size | None = None
    kept: TemporaryDirectory[str] | None = None

    def size(self) -> Size | None:
        """What it takes on disk; None where that is not known."""
        return self.weight or (checkpoint_size(self.folder) if self.folder else None)

    def tokenizer(self) -> Any:
        place = str(self.folder or self.model.name_or_path)
        require(
            bool(place),
            "The model was not loaded from a folder, so its tokenizer is unknown. Give windows of token ids.",
        )
        try:
            return AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError) as error:
            raise BadRequest(f"{place}: no tokenizer could be loaded: {error}") from error


Model = str | Path | PreTrainedModel | Opened
"""A folder, a name on the hub, a GGUF file, or a model in memory."""

_LENGTH = 2048
"""Window length of the papers' perplexities."""


def evaluate(
    model: Model,
    *,
    text: str | Tensor = "stdlib",
    reference: Model | None = None,
    length: int | None = None,
    windows: int | None = None,
    dtype: torch.dtype = torch.float32,
    tasks: Sequence[str] = (),
    progress: Progress | None = None,
) -> Measures:
    """Perplexity as the papers compute it, divergence from a reference, size, and accuracy on tasks.

    The text is cut into windows that do not overlap; perplexity is exp of the mean negative log-likelihood over all
    tokens of a window but its first. Models that are not loaded yet run on the CPU, the reference in float32; load one
    yourself to measure it on another device.

    Args:
        text: a source (see `pipeline.text.read_texts`, held-out split) or windows of token ids [count, length].
        reference: the model to measure KL(reference || model) and top-1 agreement against; shares the vocabulary.
        length: tokens of a window; without it the model's context, at most 2048.
        windows: use only the first so many.
        dtype: that `model` computes in, if it is not loaded yet; `lowbit.load` gives the type in config.json.
        tasks: of lm-eval, see `evaluation.tasks`.
        progress: called with the windows done and their number.
    """
    chosen = Tasks.find(tasks) if tasks else None  # a wrong name is said before hours of work
    opened = open_model(model, dtype)
    compared = None if reference is None else open_model(reference)
    require(windows is None or windows >= 1, f"Evaluation over {windows} windows: ask for at least 1.")
    cut = text if isinstance(text, Tensor) else held_out_windows(opened, text, length)
    cut = cut[:windows]
    _check_length(opened, cut.shape[1])
    found = measure_tokens(opened.model, cut, compared.model if compared else None, progress)
    nats = over_windows(found.nats)
    return Measures(
        text=text if isinstance(text, str) else "windows of token ids",
        windows=cut.shape[0],
        length=cut.shape[1],
        tokens=found.nats.numel(),
        nats=nats,
        perplexity=as_perplexity(nats),
        divergence=_divergence(found),
        size=opened.size(),
        tasks=chosen.run(opened.model, opened.tokenizer()) if chosen else {},
    )


def open_model(model: Model, dtype: torch.dtype = torch.float32) -> Opened:
    """Load a model that is not loaded yet, on the CPU; a quantized one as it is stored, other tools' too."""
    if isinstance(model, Opened):
        return model
    if isinstance(model, PreTrainedModel):
        return Opened(model, None)
    file = gguf_file(Path(model).expanduser())
    if file is not None:
        kept = TemporaryDirectory()
        done = import_gguf(file, Path(kept.name))
        weight = _weight(Path(kept.name), file.stat().st_size, done)
        return replace(open_model(kept.name, dtype), format=done["format"], weight=weight, kept=kept)
    folder = resolve_folder(str(model))
    quantized = read_config(folder).to_dict().get("quantization_config") or {}
    if quantized.get("quant_method") == QUANT_METHOD:
        return Opened(load(folder, dtype=dtype), folder)
    if quantized:
        with TemporaryDirectory() as place:
            done = import_folder(folder, Path(place))
            weight = _weight(Path(place), weight_bytes(folder), done)
            return Opened(load(place, dtype=dtype), folder, done["format"], weight)
    Shards.open(folder)  # a damaged folder is refused before gigabytes of it are loaded
    return Opened(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), folder)


def _weight(imported: Path, count: int, done: Mapping[str, Any]) -> Size | None:
    """Of a checkpoint of `count` bytes that was read into a folder, `done` being what was said of that."""
    size = checkpoint_size(imported)
    if size is None:
        return None
    bits = {"bits_per_parameter": 8 * count / size.parameters, "bits_per_weight": done["source_bits_per_weight"]}
    return replace(size, bytes=count, **bits)


def held_out_windows(opened: Opened, source: str, length: int | None) -> Tensor:
    """Windows of token ids [count, length] of a text's held-out split, as `evaluate` cuts them."""
    if length is None:
        length = min(_LENGTH, _context(opened))
    _check_length(opened, length)  # before a long text is read
    vocabulary = int(opened.model.config.get_text_config().vocab_size)
    stream = token_stream(opened.tokenizer(), read_texts(source, "held-out"), vocabulary)
    return evaluation_windows(stream, length)


def _check_length(opened: Opened, length: int) -> None:
    context = _context(opened)
    require(length <= context, f"Windows of {length} tokens: the model reads at most {context}. Ask for fewer.")


def _context(opened: Opened) -> int:
    return int(opened.model.config.get_text_config().max_position_embeddings)


def _divergence(found: TokenMeasures) -> Divergence | None:
    if found.kl is None or found.agrees is None or found.reference_nats is None:
        return None
    return Divergence(
        perplexity=as_perplexity(over_windows(found.reference_nats)),
        kl=over_windows(found.kl),
        kl_quantiles=quantiles(found.kl),
        kl_histogram=logarithms(found.kl),
        agreement=over_windows(found.agrees),
    )
