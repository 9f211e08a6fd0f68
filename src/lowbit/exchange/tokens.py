"""A tokenizer as GGUF holds it: byte-level BPE, the kind that `tokenizer.json` describes completely.

llama.cpp knows by name how text is cut before merging, so only cuts whose name is known are written.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lowbit.core.errors import require
from lowbit.formats.shards import read_json

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def write_tokenizer(writer: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """Add a folder's tokenizer to a GGUFWriter; raises BadRequest where it is of a kind that is not known."""
    data = read_json(folder / "tokenizer.json")
    model = data.get("model", {})
    cut = _cut(data)
    require(
        model.get("type") == "BPE" and cut is not None,
        f"{folder / 'tokenizer.json'}: only byte-level BPE with the cuts of GPT-2, Llama 3 or Qwen 2 can be written.",
    )
    by_id = {number: (token, _NORMAL) for token, number in model["vocab"].items()}
    for added in data.get("added_tokens", []):
        by_id[added["id"]] = (added["content"], _CONTROL if added["special"] else _USER_DEFINED)
    tokens = [by_id.get(number, (f"[PAD{number}]", _UNUSED)) for number in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for add, name in ((writer.add_bos_token_id, "bos_token_id"), (writer.add_eos_token_id, "eos_token_id")):
        if isinstance(config.get(name), int):
            add(config[name])
    writer.add_add_bos_token(_begins_with_special(data))


def _cut(data: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of how text is cut; None for a cut that has none here."""
    steps = list(_steps(data.get("pre_tokenizer"), "pretokenizers"))
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        return _CUTS.get(steps[0].get("pattern", {}).get("Regex", ""))
    return None


def _begins_with_special(data: Mapping[str, Any]) -> bool:
    steps = _steps(data.get("post_processor"), "processors")
    return any("SpecialToken" in step["single"][0] for step in steps if step.get("type") == "TemplateProcessing")


def _steps(step: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a sequence, or the one there is."""
    if isinstance(step, Mapping):
        yield from step[inner] if step.get("type") == "Sequence" else [step]
