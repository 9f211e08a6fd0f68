"""A Llama of any size with random weights, as the hub stores one, written tensor by tensor.

    python tools/make_synthetic.py OUT --shape 7B
    python tools/make_synthetic.py OUT --shape 70B --blocks 1

For measuring memory and time where no real model of the size is at hand. Weights are Gaussian with the standard
deviation 0.02 in bfloat16, in shards of at most 2 GB with an index, drawn by tensor name, so the same folder comes out
every time. At most one tensor is in memory. The tokenizer knows bytes and nothing else.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_SHARD_BYTES = 2_000_000_000
_STANDARD_DEVIATION = 0.02
# Numbers drawn together: 256 MB of float32.
_PIECE = 1 << 26


@dataclass(frozen=True)
class Shape:
    """width: of hidden states; inner: of the MLP; heads, kv_heads: of attention."""

    blocks: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int = 32_000


SHAPES = {
    "tiny": Shape(2, 64, 192, 4, 2, 320),
    "400M": Shape(24, 1024, 4096, 16, 16),
    "1B": Shape(16, 2048, 8192, 32, 8),
    "7B": Shape(32, 4096, 11008, 32, 32),
    "8B": Shape(32, 4096, 14336, 32, 8, 128_256),
    "70B": Shape(80, 8192, 28672, 64, 8),
}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the model."""
    kv = shape.width // shape.heads * shape.kv_heads
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.width)
    for block in range(shape.blocks):
        path = f"model.layers.{block}"
        yield f"{path}.input_layernorm.weight", (shape.width,)
        for name, outputs in (("q", shape.width), ("k", kv), ("v", kv), ("o", shape.width)):
            yield f"{path}.self_attn.{name}_proj.weight", (outputs, shape.width)
        yield f"{path}.post_attention_layernorm.weight", (shape.width,)
        yield f"{path}.mlp.gate_proj.weight", (shape.inner, shape.width)
        yield f"{path}.mlp.up_proj.weight", (shape.inner, shape.width)
        yield f"{path}.mlp.down_proj.weight", (shape.width, shape.inner)
    yield "model.norm.weight", (shape.width,)
    yield "lm_head.weight", (shape.vocabulary, shape.width)


def write_model(folder: Path, shape: Shape) -> None:
    """Write config, shards, index and tokenizer to a new folder."""
    folder.mkdir(parents=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, dims in tensors(shape):
        nbytes = 2 * math.prod(dims)
        if size + nbytes > _SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = dims
        size += nbytes
    weight_map = {}
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, members)
        weight_map |= dict.fromkeys(members, file)
    total = sum(2 * math.prod(dims) for members in shards for dims in members.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2))
    _tokenizer().save_pretrained(folder)


def _config(shape: Shape) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 256,
        "eos_token_id": 256,
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


def _write_shard(path: Path, members: dict[str, tuple[int, ...]]) -> None:
    header, position = {}, 0
    for name, dims in members.items():
        end = position + 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [position, end]}
        position = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dims in members.items():
            for values in _values(name, dims):
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).data)


def _values(name: str, dims: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The tensor in pieces, float32: ones for a norm, else Gaussian; cut off to bfloat16 by the caller."""
    count = math.prod(dims)
    generator = np.random.default_rng(list(name.encode()))
    for start in range(0, count, _PIECE):
        size = min(_PIECE, count - start)
        if len(dims) == 1:
            yield np.ones(size, np.float32)
        else:
            yield generator.standard_normal(size, np.float32) * np.float32(_STANDARD_DEVIATION)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1B")
    parser.add_argument("--blocks", type=int, help="fewer blocks than the shape has")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    write_model(options.out, Shape(**(vars(shape) | {"blocks": options.blocks or shape.blocks})))


if __name__ == "__main__":
    main()
