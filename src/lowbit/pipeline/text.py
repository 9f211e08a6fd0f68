"""From a source of text to windows of tokens.

    source -> documents -> one stream of tokens -> windows [count, length]

Calibration takes windows at random places of the stream, evaluation takes all of them in order. Documents are told
apart by the token that the model itself saw between them. A data set in which some rows are empty is a data set of
paragraphs, not of documents (WikiText is one): its rows are joined with a blank line, as the papers do.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.core.errors import BadRequest, require
from lowbit.core.random import stream as random_stream
from lowbit.demo.text import Split, stdlib_texts

_MOST_CHARACTERS = 50_000_000
"""Hub data sets are read up to here (about 12 million tokens, 6,000 windows of 2048): some have terabytes."""

_END_OF_TEXT = "<|endoftext|>"
"""Between the documents of a .txt file, as GPT-2's successors publish them."""

_DOCUMENTS = 16
"""Documents tokenized at a time."""

_SOURCES = "SOURCE is `stdlib`, a .txt, .jsonl or .parquet file, or a data set as name[:config[:split]]"


def read_texts(source: str, split: Split = "calibration") -> list[str]:
    """The documents of a source, none of them empty.

    Args:
        source: `stdlib` (the source of Python's own library), a .txt file (documents between `<|endoftext|>`, or one),
            a .jsonl or .parquet file (field `text`, or the only field that holds strings), or a data set of the hub or
            a local folder that the `datasets` package can load, as name[:config[:split]].
        split: of `stdlib` its calibration or held-out files; of a data set that names no split of its own `train`
            or `test`. A file has no splits.

    Raises BadRequest for a source that is missing, empty, not UTF-8 (naming the byte) or without a text field.
    """
    require_source(source)
    path = Path(source)
    if source == "stdlib":
        texts: Iterable[str] = stdlib_texts(split)
    elif path.suffix in _READERS:
        texts = _READERS[path.suffix](path)
    else:
        texts = _data_set(source, split)
    documents = _join_paragraphs(list(texts))
    require(bool(documents), f"Text {source} is empty: it holds nothing but blanks. {_SOURCES}.")
    return documents


def require_source(source: str) -> None:
    """Raise BadRequest for a file that is missing or of no known kind; a data set is not asked for."""
    path = Path(source)
    require(path.suffix not in _READERS or path.is_file(), f"Text file {source} does not exist.")
    require(
        source == "stdlib" or path.suffix in _READERS or not path.is_file(),
        f"Text file {source}: its kind is not known. {_SOURCES}.",
    )


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """The documents in an order drawn by `seed`."""
    order = torch.randperm(len(texts), generator=random_stream(seed, "calibration documents"))
    return [texts[i] for i in order]


def token_stream(tokenizer: Any, texts: Sequence[str], vocabulary_size: int, enough: int | None = None) -> Tensor:
    """All documents as one stream of token ids [n], int64; no further documents are read once it has `enough`.

    Each document begins with the tokenizer's bos token, or ends with its eos token where it has no bos.

    Args:
        tokenizer: of transformers, or anything that is called and answers like one.
        vocabulary_size: rows of the model's embedding; BadRequest where an id lies outside of it.
    """
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    after = [] if before or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for start in range(0, len(texts), _DOCUMENTS):
        some = list(texts[start : start + _DOCUMENTS])
        encoded = tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids.extend(chain.from_iterable(chain(before, document, after) for document in encoded["input_ids"]))
        if enough is not None and len(ids) >= enough:
            break
    tokens = torch.tensor(ids, dtype=torch.int64)
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary_size:
        raise BadRequest(
            f"The tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} does not belong to this model: it "
            f"gives token {int(tokens.max())}, the model knows 0 to {vocabulary_size - 1}. Use the model's own."
        )
    return tokens


def calibration_windows(stream: Tensor, samples: int, length: int, seed: int) -> Tensor:
    """`samples` distinct windows [samples, length] of the stream [n], none overlapping, in an order drawn by `seed`.

    Fewer samples under the same seed are the first of more.
    """
    require(samples >= 1, f"Calibration with {samples} samples: at least 1 is needed. 128 is the papers' choice.")
    require(length >= 2, f"Calibration with windows of {length} tokens: at least 2 are needed. 2048 is usual.")
    slots = _slots(stream, length)
    if len(slots) < samples:
        raise BadRequest(
            f"The calibration text is too short: {len(stream):,} tokens, and {samples} samples of {length} need "
            f"{samples * length:,}. Give more text{_fewer(len(slots))}{_shorter(len(stream) // samples)}."
        )
    chosen = torch.randperm(len(slots), generator=random_stream(seed, "calibration windows"))[:samples]
    return slots[chosen].clone()


def evaluation_windows(stream: Tensor, length: int) -> Tensor:
    """The stream [n] cut into windows [count, length] in order; the remainder is dropped, as the papers do."""
    require(length >= 2, f"Evaluation with windows of {length} tokens: at least 2 are needed. 2048 is usual.")
    slots = _slots(stream, length)
    require(
        len(slots) > 0,
        f"The evaluation text is too short: {len(stream):,} tokens, and one window needs {length:,}. Give more text"
        f"{_shorter(len(stream))}.",
    )
    return slots


def windows_digest(windows: Tensor) -> str:
    """SHA-256 over the shape and the ids of windows [count, length]: equal digests mean equal calibration."""
    ids = windows.contiguous().numpy().astype("<i8")
    return hashlib.sha256(repr(tuple(windows.shape)).encode() + ids.tobytes()).hexdigest()


def _slots(stream: Tensor, length: int) -> Tensor:
    return stream[: len(stream) // length * length].view(-1, length)


def _fewer(samples: int) -> str:
    return f", or ask for at most {samples} samples" if samples else ""


def _shorter(length: int) -> str:
    return f", or ask for windows of at most {length} tokens" if length >= 2 else ""


def _join_paragraphs(rows: list[str]) -> list[str]:
    filled = [row for row in rows if row.strip()]
    return filled if len(filled) in (0, len(rows)) else ["\n\n".join(rows)]


def _plain(path: Path) -> list[str]:
    return [document for document in _utf8(path).split(_END_OF_TEXT) if document.strip()]


def _json_lines(path: Path) -> list[str]:
    rows = []
    for number, line in enumerate(_utf8(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadRequest(f"{path} line {number} is not JSON: {error.msg} at column {error.colno}.") from error
        rows.append({"text": row} if isinstance(row, str) else row)
        require(isinstance(rows[-1], dict), f"{path} line {number} is neither an object nor a string.")
    return _column(rows, str(path))


def _parquet(path: Path) -> list[str]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise BadRequest(f"{path}: reading Parquet needs pyarrow. Run `pip install lowbit[datasets]`.") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise BadRequest(f"{path} is not a readable Parquet file: {error}") from error
    return _column(rows, str(path))


_READERS = {".txt": _plain, ".jsonl": _json_lines, ".parquet": _parquet}


def _data_set(source: str, split: Split) -> list[str]:
    """Rows of a data set through the `datasets` package, streamed up to `_MOST_CHARACTERS`."""
    try:
        import datasets
    except ImportError as error:
        raise BadRequest(
            f"Text {source} is no file, and reading it as a data set needs the `datasets` package. "
            f"Run `pip install lowbit[datasets]`. {_SOURCES}."
        ) from error
    name, config, part = (*source.split(":", 2), "", "")[:3]
    part = part or {"calibration": "train", "held-out": "test"}[split]
    rows, characters = [], 0
    try:
        for row in datasets.load_dataset(name, config or None, split=part, streaming=True):
            rows.append(row)
            characters += sum(len(value) for value in row.values() if isinstance(value, str))
            if characters > _MOST_CHARACTERS:
                break
    except (OSError, ValueError, RuntimeError) as error:
        raise BadRequest(
            f"Data set {name} (config {config or 'default'}, split {part}) cannot be read: {error}\n{_SOURCES}."
        ) from error
    return _column(rows, source)


def _column(rows: Sequence[Mapping[str, Any]], source: str) -> list[str]:
    """The text of each row: its field `text`, or the only field that holds strings."""
    if not rows:
        return []
    fields = [field for field, value in rows[0].items() if isinstance(value, str)]
    named = [field for field in fields if field == "text"] or fields
    if len(named) != 1:
        raise BadRequest(
            f"{source} has no field `text` and not exactly one field that holds strings; its fields are "
            f"{', '.join(rows[0]) or 'none'}. Rename the field with the text to `text`."
        )
    return [_checked_text(row.get(named[0]), f"{source} row {number}") for number, row in enumerate(rows, 1)]


def _checked_text(value: Any, place: str) -> str:
    require(isinstance(value, str), f"{place}: the text is not a string but {value!r:.40}.")
    halves = not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)
    require(not halves, f"{place}: the text holds half of a UTF-16 pair. Mend or leave out the \\ud... escape.")
    return value


def _utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path} is not UTF-8: {error.reason} at byte {error.start}. Convert it to UTF-8.") from error
