"""GGUF: the package's own reader, and transformers through it, find exactly the weights that lowbit has."""

from dataclasses import replace

import gguf
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import lowbit
from exchange.folders import CONFIG, TOKENS, checkpoint, solved
from lowbit.codes import Lookup, ScaledLevels, SuperBlocks
from lowbit.core.errors import BadRequest
from lowbit.exchange.gguf_blocks import BLOCK_TYPES, stored
from lowbit.recipes import kquant, optq, rtn

WIDE = (4, 512)
KINDS = {
    "Q2_K": (rtn(bits=2), WIDE),
    "Q3_K": (rtn(bits=3, group_size=256, symmetric=True), WIDE),
    "Q4_0": (rtn(bits=4, group_size=32, symmetric=True), WIDE),
    "Q4_K": (rtn(bits=4, group_size=256), WIDE),
    "Q5_0": (rtn(bits=4, group_size=64), WIDE),
    "Q5_K": (rtn(bits=5, group_size="tensor"), WIDE),
    "Q6_K": (rtn(bits=6, symmetric=True), WIDE),
    "Q8_0": (rtn(bits=8, group_size=32, symmetric=True), WIDE),
    "Q2_K as it is": (kquant(bits=2), WIDE),
    "Q3_K as it is": (kquant(bits=3), WIDE),
    "Q4_K as it is": (kquant(bits=4), WIDE),
    "Q5_K as it is": (kquant(bits=5), WIDE),
    "Q6_K as it is": (kquant(bits=6), WIDE),
    "Q4_1 as it is": (replace(rtn(), code=Lookup(SuperBlocks(4, 1, 1), 32)), WIDE),
    "Q5_1 as it is": (replace(rtn(), code=Lookup(SuperBlocks(5, 1, 1), 32)), WIDE),
    "Q4_0 in place of a K-quant": (kquant(bits=2), (4, 96)),
    "Q5_0 in place of a K-quant": (kquant(bits=4), (4, 96)),
    "Q8_0 in place of a K-quant": (kquant(bits=6), (4, 96)),
    "Q8_0 of rows with signed steps": (replace(rtn(), code=Lookup(ScaledLevels("int7"))), WIDE),
    "Q4_0 of three bits with zero points": (rtn(bits=3, group_size=32), (4, 96)),
    "Q5_0 of a row that no large block divides": (rtn(bits=4), (4, 96)),
    "Q8_0 of six bits with zero points": (rtn(bits=6, group_size=32), (4, 96)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_reads_the_same_weights(kind):
    recipe, shape = KINDS[kind]
    layer = solved(torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.6, recipe)
    block, fields = stored(layer)
    assert block.name == kind.partition(" ")[0]
    data = block.blocks(fields).numpy()
    found = gguf.dequantize(data, gguf.GGMLQuantizationType[block.name])
    assert torch.equal(torch.from_numpy(found), layer.dequantize())
    back = block.layer(torch.from_numpy(data), "back")
    assert torch.equal(back.dequantize(), layer.dequantize())
    again, same = stored(back)
    assert again.bits <= block.bits
    assert torch.equal(again.layer(again.blocks(same), "again").dequantize(), layer.dequantize())


def test_every_type_is_tested_and_takes_what_the_package_says():
    assert {kind.name for kind in BLOCK_TYPES} == {kind.partition(" ")[0] for kind in KINDS}
    for kind in BLOCK_TYPES:
        assert (kind.width, kind.nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]
    bits = [kind.nbytes / kind.width for kind in BLOCK_TYPES]
    assert bits == sorted(bits)


def with_tokenizer(folder, cut=None):
    """Give a checkpoint a byte-level BPE of 256 bytes and one merge."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({**letters, "th": 256}, [("t", "h")]))
    tokenizer.pre_tokenizer = cut or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.mark.parametrize(
    "recipe", [rtn(bits=4, group_size=32, symmetric=True), optq(bits=3, group_size=32)], ids=["4 bits", "3 bits"]
)
def test_transformers_reads_the_file(recipe, tmp_path):
    """The real consumer: transformers, through the package gguf, has the same weights and the same logits."""
    checkpoint(tmp_path / "own", recipe, recipe, None)
    with_tokenizer(tmp_path / "own")
    done = lowbit.export(tmp_path / "own", tmp_path / "out", "gguf")
    assert done["bits_per_weight"] == 4.5
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    ours = lowbit.load(tmp_path / "own", dtype=torch.float32)
    ours.dequantize()
    own = ours.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in theirs.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(theirs(TOKENS).logits, ours(TOKENS).logits, rtol=0, atol=1e-5)


def test_settings_and_tokens_are_in_the_file(tmp_path):
    checkpoint(tmp_path / "own", rtn(bits=4, group_size=32, symmetric=True))
    with_tokenizer(tmp_path / "own")
    lowbit.export(tmp_path / "own", tmp_path / "out", "gguf")
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    found = {name: field.contents() for name, field in fields.items()}
    assert found["llama.attention.head_count_kv"] == CONFIG.num_key_value_heads
    assert found["llama.rope.dimension_count"] == CONFIG.head_dim
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert len(found["tokenizer.ggml.tokens"]) == CONFIG.vocab_size
    assert found["tokenizer.ggml.tokens"][256] == "th"
    assert found["tokenizer.ggml.merges"] == ["t h"]
    assert found["tokenizer.ggml.token_type"][255:258] == [1, 1, 5]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "model.gguf"]


REFUSED = {
    "groups of 16": (rtn(bits=4, group_size=16), "groups of 16 columns are not whole blocks of 32.*fits .*gptq_v2"),
    "act-order": (optq(bits=3, group_size=32, act_order=True), "act-order"),
    "eight bits with zero points": (rtn(bits=8, group_size=32), "no block type reaches"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_block_holds_is_refused_and_leaves_nothing(case, tmp_path):
    recipe, message = REFUSED[case]
    checkpoint(tmp_path / "own", recipe)
    with_tokenizer(tmp_path / "own")
    with pytest.raises(BadRequest, match=message):
        lowbit.export(tmp_path / "own", tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(tmp_path):
    checkpoint(tmp_path / "own", rtn(bits=4, group_size=32))
    with_tokenizer(tmp_path / "own", pre_tokenizers.Whitespace())
    with pytest.raises(BadRequest, match="byte-level BPE"):
        lowbit.export(tmp_path / "own", tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()
