"""The model card: README.md in the hub's form, so that a folder tells what it is wherever it lies.

The first lines are YAML that the hub reads (base model, library, tags, licence); the rest says how the model was made,
what was measured, how to make it again and how to load it. A card of the source model is linked to, never copied.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.formats.files import write_text_atomically
from lowbit.formats.shards import read_json
from lowbit.report import numbers

CARD_NAME = "README.md"
_TOGETHER = """model, tokenizer = {model}, AutoTokenizer.from_pretrained(folder)
tokens = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=32)[0]))
"""
_TRANSFORMERS = """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "FOLDER"  # where it lies, or its name on the hub
"""
_HALF = _TRANSFORMERS + _TOGETHER.format(model="AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)")
_LOADING = {
    "lowbit": """# over HTTP: `transformers serve FOLDER --trust-remote-code`
import lowbit  # from here on transformers' AutoModelForCausalLM reads it, too
from transformers import AutoTokenizer

folder = "FOLDER"  # where it lies
"""
    + _TOGETHER.format(model="lowbit.load(folder)"),
    "gptq": "# pip install gptqmodel optimum; vLLM: `vllm serve FOLDER` (version 1, symmetric, 4 and 8 bits)\n" + _HALF,
    "compressed-tensors": "# pip install compressed-tensors; vLLM: `vllm serve FOLDER`\n" + _HALF,
    "compressed-tensors with zero points": """# pip install compressed-tensors; vLLM: `vllm serve FOLDER` (4 and 8 bits)
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

folder = "FOLDER"  # where it lies, or its name on the hub
dense = CompressedTensorsConfig(dequantize=True)  # otherwise transformers does not unpack zero points
"""
    + _TOGETHER.format(
        model="AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, quantization_config=dense)"
    ),
    "awq": "# pip install gptqmodel; vLLM: `vllm serve FOLDER`\n" + _HALF,
    "exl3": """# On a GPU: exllamav3, TabbyAPI. On a CPU: pip install gptqmodel
from gptqmodel import GPTQModel

model = GPTQModel.load("FOLDER", device="cpu")
""",
    "gguf": """# llama.cpp: `llama-cli -m FOLDER/model.gguf`; here: pip install gguf
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER", gguf_file="model.gguf")
print(model)  # the tokenizer inside is llama.cpp's; in Python use the original model's
""",
}


def write_card(folder: Path, record: Mapping[str, Any], format: str = "lowbit") -> None:
    """Write the card of a finished folder, replacing the one there, as a whole.

    record: of the run, as for `report.write_report`; of a model that another tool quantized only lowbit_version, model
    (source), imported (the format it was read from), command and size (bits_per_weight). requantized: how many layers
    an export rounded again; the measures are beside the folder exported then. format: what the folder is in, "lowbit"
    or the name of an exported format.
    """
    write_text_atomically(folder / CARD_NAME, card(record, format, snippet(folder, format)))


def snippet(folder: Path, format: str) -> str:
    """Python that loads a folder of a format from beside it and lets it write a line."""
    kind = format.partition("_")[0]
    if kind == "compressed-tensors" and not _is_symmetric(read_json(folder / "config.json")):
        kind = f"{kind} with zero points"
    return _LOADING[kind].replace("FOLDER", folder.name)


def _is_symmetric(config: Mapping[str, Any]) -> bool:
    groups = config["quantization_config"]["config_groups"].values()
    return all(group["weights"]["symmetric"] for group in groups)


def card(record: Mapping[str, Any], format: str = "lowbit", loading: str = _LOADING["lowbit"]) -> str:
    """The text of a card; loading: Python that loads the folder. See `write_card`."""
    source = record["model"]["source"]
    bits = record["size"]["bits_per_weight"]
    parts = [
        _front_matter(record, format),
        f"# {_name(source)} at {bits:.2f} bits per weight\n",
        f"{_link(source)}, {_made(record)}"
        + (f", stored as {format}: {_faithful(record)}.\n" if format != "lowbit" else ".\n"),
        _facts(record),
        _measured(record.get("measures"), "folder exported" if record.get("requantized") else "original"),
        f"## Make it again\n\n```\n{record['command']}\n```\n",
        f"## Load it\n\n```python\n{loading}```\n",
        _citations(record.get("citations", ())),
    ]
    return "\n".join(part for part in parts if part)


def _made(record: Mapping[str, Any]) -> str:
    if "imported" in record:
        return f"read from {record['imported']} by lowbit {record['lowbit_version']}, exactly the same codes"
    named = f" with the recipe `{record['recipe_name']}`" if "recipe_name" in record else ""
    return f"quantized by lowbit {record['lowbit_version']}{named}"


def _faithful(record: Mapping[str, Any]) -> str:
    again = record.get("requantized", 0)
    return f"{again} layers that do not fit were rounded a second time" if again else "exactly the same codes"


def _front_matter(record: Mapping[str, Any], format: str) -> str:
    # Values are JSON strings, which YAML reads as they are.
    source = record["model"]["source"]
    library = {"gguf": "gguf", "exl3": "exllamav3"}.get(format, "transformers")
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    if _on_hub(source):
        lines += [f"base_model: {json.dumps(source)}", "base_model_relation: quantized"]
    made = [format] if format != "lowbit" else []
    made += [record["recipe_name"]] if "recipe_name" in record else []
    tags = ["lowbit", "quantized", *made]
    return "\n".join([*lines, f"tags: {json.dumps(tags)}", "---\n"])


def _on_hub(source: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not source.startswith(".")


def _name(source: str) -> str:
    return source.rstrip("/").rpartition("/")[2] or source


def _link(source: str) -> str:
    return f"[{source}](https://huggingface.co/{source})" if _on_hub(source) else f"`{_name(source)}`, a local folder"


def _facts(record: Mapping[str, Any]) -> str:
    rows = [("bits per quantized weight, everything included", f"{record['size']['bits_per_weight']:.3f}")]
    size = record["size"]
    if "after" in size:
        rows.append(("size", f"{numbers.size(size['before'])} -> {numbers.size(size['after'])}"))
    if record.get("calibration", {}).get("tokens"):
        seen = record["calibration"]
        rows.append(("calibration", f"{seen['tokens']} tokens of {seen['source']}, seed {seen['seed']}"))
    return _table(("", ""), rows)


def _measured(measures: Mapping[str, Any] | None, reference: str) -> str:
    if measures is None:
        return ""
    rows = [("perplexity", numbers.estimate(measures["perplexity"]))]
    divergence = measures.get("divergence")
    if divergence:
        rows.append((f"perplexity of the {reference}", numbers.estimate(divergence["perplexity"])))
        rows.append(("KL divergence from it, nats a token", numbers.estimate(divergence["kl"])))
        rows.append(("same likeliest token", numbers.share(divergence["agreement"]["mean"])))
    title = f"Measured on {measures['text']} (held out), {measures['windows']} windows of {measures['length']} tokens"
    return f"## {title}\n\n" + _table(("measure", "value"), rows)


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {left} | {right} |" for left, right in lines) + "\n"


def _citations(entries: Sequence[str]) -> str:
    return "## Cite\n\n```bibtex\n" + "\n\n".join(entries) + "\n```\n" if entries else ""
