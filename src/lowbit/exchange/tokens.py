"""A tokenizer as GGUF holds it: byte-level BPE, the kind that `tokenizer.json` describes completely.

llama.cpp knows by name how text is cut before merging, so only cuts whose name is known are written and read. The other
kind of tokenizer that GGUF has, SentencePiece's, is read by transformers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lowbit.core.errors import BadRequest, require
from lowbit.formats.shards import read_json

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}
_OTHER_NAMES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "gpt2": "gpt-2"}
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


def read_tokenizer(fields: Mapping[str, Any], path: Path, folder: Path) -> None:
    """Write the tokenizer of the GGUF file `path`, whose settings are `fields`, into `folder` as transformers has it.

    Raises BadRequest where it is of a kind that is not known, or not what it claims to be.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer: Any = _byte_level(fields)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        except (ValueError, KeyError, TypeError, NotImplementedError) as error:
            raise BadRequest(f"its tokenizer, tokenizer.ggml.model {kind!r}, cannot be read: {error}") from error
    if isinstance(fields.get("tokenizer.chat_template"), str):
        tokenizer.chat_template = fields["tokenizer.chat_template"]
    tokenizer.save_pretrained(folder)


def _byte_level(fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    tokens, kinds = (_list(fields, f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    require(
        len(tokens) == len(kinds) == len(set(tokens)),
        f"its tokenizer has {len(tokens)} tokens ({len(set(tokens))} different) of {len(kinds)} kinds.",
    )
    vocabulary = {token: number for number, token in enumerate(tokens) if kinds[number] != _UNUSED}
    merges = [tuple(pair.split(" ")) for pair in _list(fields, "tokenizer.ggml.merges")]
    wrong = next((pair for pair in merges if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys()), None)
    require(wrong is None, f"its tokenizer merges {wrong}, which are no tokens.")
    cut = str(fields.get("tokenizer.ggml.pre", "gpt-2"))
    cut = _OTHER_NAMES.get(cut, cut)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=cut == "llama-bpe"))
    tokenizer.pre_tokenizer = _cutter(cut)
    tokenizer.decoder = decoders.ByteLevel()
    for add, kind in ((tokenizer.add_special_tokens, _CONTROL), (tokenizer.add_tokens, _USER_DEFINED)):
        add([token for token, own in zip(tokens, kinds, strict=True) if own == kind])
    ends = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    named = {f"{name}_token": tokens[at] for name, at in ends.items() if isinstance(at, int) and at < len(tokens)}
    if fields.get("tokenizer.ggml.add_bos_token") and "bos_token" in named:
        begin = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A", None, [(begin, ends["bos"])])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named
    )


def _list(fields: Mapping[str, Any], key: str) -> list[Any]:
    found = fields.get(key)
    if not isinstance(found, list):
        raise BadRequest(f"{key} is missing or no list.")
    return found


def _cutter(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    pattern = next((pattern for pattern, known in _CUTS.items() if known == name), None)
    if pattern is None:
        raise BadRequest(f"its tokenizer cuts text as {name!r} does; lowbit knows gpt-2, {', '.join(_CUTS.values())}.")
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


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
