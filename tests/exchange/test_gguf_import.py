"""GGUF files come in with the weights that other readers find in them, and damaged ones do not."""

import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from typer.testing import CliRunner

import lowbit
from exchange.folders import CONFIG, TOKENS, checkpoint
from exchange.test_gguf import with_tokenizer
from lowbit.cli.app import app
from lowbit.core.errors import BadRequest
from lowbit.exchange.gguf_names import ARCHITECTURES, row_order, tensor_name
from lowbit.recipes import kquant, rtn

WIDE = LlamaConfig(**CONFIG.to_dict() | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64})
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "MXFP4", "F32")


def dense(folder):
    model = lowbit.load(folder, dtype=torch.float32)
    model.dequantize()
    return model.state_dict()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A lowbit folder of K-quants of all widths, untied, and the file it was exported to."""
    place = tmp_path_factory.mktemp("gguf")
    checkpoint(place / "own", *(kquant(bits) for bits in (2, 3, 4, 5, 6)), rtn(bits=4), config=WIDE)
    with_tokenizer(place / "own")
    lowbit.export(place / "own", place / "out", "gguf")
    return place


def test_an_export_comes_back_with_the_same_codes(exported, tmp_path):
    done = lowbit.import_(exported / "out" / "model.gguf", tmp_path / "back")
    assert done["layers"] == 7
    own, back = dense(exported / "own"), dense(tmp_path / "back")
    assert all(torch.equal(tensor, back[name]) for name, tensor in own.items())
    lowbit.export(tmp_path / "back", tmp_path / "again", "gguf")
    first, second = (gguf.GGUFReader(path / "model.gguf") for path in (exported / "out", tmp_path / "again"))
    again = {tensor.name: tensor.data for tensor in second.tensors}
    assert all(np.array_equal(tensor.data, again[tensor.name]) for tensor in first.tensors)


def test_the_tokenizer_comes_back(exported, tmp_path):
    lowbit.import_(exported / "out", tmp_path / "back")
    own, back = (AutoTokenizer.from_pretrained(folder) for folder in (exported / "own", tmp_path / "back"))
    text = "the moth\n\n  thinks: 1234 + ü"
    assert own(text)["input_ids"] == back(text)["input_ids"]
    assert back.decode(back(text)["input_ids"]) == text


def write_by_type(path, source, types):
    """Rewrite a file with dense tensors in `types`, taking turns, as the package's own quantizer makes them."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    generator, turn = np.random.default_rng(0), 0
    for tensor in reader.tensors:
        data = generator.standard_normal(tensor.shape[::-1].astype(int)).astype(np.float32)
        kind = gguf.GGMLQuantizationType[types[turn % len(types)] if data.ndim == 2 else "F32"]
        turn += data.ndim == 2
        writer.add_tensor(tensor.name, gguf.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_what_others_write_is_what_transformers_reads(exported, tmp_path):
    """The real reader: transformers through the package, on types that lowbit has codes for and on others."""
    write_by_type(tmp_path / "theirs.gguf", exported / "out" / "model.gguf", TYPES)
    lowbit.import_(tmp_path / "theirs.gguf", tmp_path / "back")
    recipes = json.loads((tmp_path / "back" / "config.json").read_text())["quantization_config"]["recipes"]
    assert {recipe["code"]["part"] for recipe in recipes} == {"Lookup", "IntegerGrid"}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="theirs.gguf", dtype=torch.float32).state_dict()
    back = dense(tmp_path / "back")
    assert all(torch.equal(tensor, back[name]) for name, tensor in theirs.items())


def test_a_file_without_quantized_layers_becomes_a_plain_model(exported, tmp_path):
    write_by_type(tmp_path / "plain.gguf", exported / "out" / "model.gguf", ("F16",))
    assert lowbit.import_(tmp_path / "plain.gguf", tmp_path / "back")["bits_per_weight"] == 16
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    assert model(TOKENS).logits.isfinite().all()


def test_eval_takes_the_file(exported, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the other moth thinks that this is that " * 40)
    arguments = ["--text", text, "--windows", 2, "--reference", exported / "own", "--json"]
    for model in (exported / "out" / "model.gguf", exported / "out"):
        done = CliRunner().invoke(app, [str(word) for word in ("eval", model, *arguments)], catch_exceptions=False)
        found = json.loads(done.stdout)
        assert found["divergence"]["kl"]["mean"] == 0
        assert found["size"]["bytes"] == (exported / "out" / "model.gguf").stat().st_size


def patched(place, at, value):
    def change(data):
        start = data.index(place) + at
        return data[:start] + value + data[start + len(value) :]

    return change


def number(value, size=8):
    return value.to_bytes(size, "little")


def named(name):
    """The name of a tensor as its entry in the file has it, so that no key is meant."""
    return number(len(name)) + name.encode()


Q2_K, LAYER = "blk.0.attn_q.weight", "blk.0.ffn_up.weight"
ATTACKS = {
    "cut short": (lambda data: data[:-1000], "is damaged"),
    "cut in its settings": (lambda data: data[:300], "it is cut short"),
    "empty": (lambda data: b"", "no GGUF file"),
    "other magic": (lambda data: b"GGML" + data[4:], "no GGUF file"),
    "another version": (lambda data: data[:4] + number(9, 4) + data[8:], "version 9"),
    "more tensors than there are": (lambda data: data[:8] + number(99) + data[16:], "."),
    "countless tensors": (lambda data: data[:8] + number(2**60) + data[16:], "holds more than it does"),
    "countless settings": (lambda data: data[:16] + number(2**60) + data[24:], "."),
    "a list of countless tokens": (patched(b"tokenizer.ggml.tokens", 29, number(2**60)), "holds more than it does"),
    "a list of countless numbers": (
        patched(b"tokenizer.ggml.token_type", 33, number(2**56)),
        "holds more than it does",
    ),
    "a list of lists": (patched(b"tokenizer.ggml.token_type", 29, number(9, 4)), "a list is of values of type 9"),
    "a type that is none": (patched(named(LAYER), 8 + len(LAYER) + 20, number(77, 4)), "is damaged"),
    "a type of other size": (patched(named(LAYER), 8 + len(LAYER) + 20, number(8, 4)), "."),
    "another shape": (patched(named(LAYER), 8 + len(LAYER) + 4, number(256) + number(256)), "but the model has"),
    "an offset beyond the end": (patched(named(LAYER), 8 + len(LAYER) + 24, number(2**40)), "is damaged"),
    "a name that is none": (patched(named(LAYER), 8, b"blk.0.ffn_xx"), "none that lowbit knows"),
    "a name twice": (patched(named("blk.0.attn_k.weight"), 8, Q2_K.encode()), "duplicated tensor"),
    "more blocks than there are": (patched(b"llama.block_count", 21, number(2, 4)), "block_count is 2"),
    "no heads": (patched(b"llama.attention.head_count\x04", 30, number(0, 4)), "head_count is 0"),
    "heads that do not divide": (patched(b"llama.attention.head_count\x04", 30, number(3, 4)), "settings do not make"),
    "another architecture": (lambda data: data.replace(b"llama", b"bloom"), "it is a 'bloom'"),
    "another cut": (patched(b"tokenizer.ggml.pre", 30, b"xpt-2"), "cuts text as 'xpt-2'"),
    "a merge of no tokens": (patched(b"tokenizer.ggml.merges", 45, b"\x7f h"), "which are no tokens"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_lying_file_is_refused_and_leaves_nothing(attack, exported, tmp_path):
    change, message = ATTACKS[attack]
    data = (exported / "out" / "model.gguf").read_bytes()
    bad = change(data)
    assert bad != data
    (tmp_path / "bad.gguf").write_bytes(bad)
    with pytest.raises(BadRequest, match=message):
        lowbit.import_(tmp_path / "bad.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scale_that_is_no_number_is_refused(exported, tmp_path):
    reader = gguf.GGUFReader(exported / "out" / "model.gguf")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == LAYER)
    data = bytearray((exported / "out" / "model.gguf").read_bytes())
    kind = tensor.tensor_type.name
    at = tensor.data_offset + (0 if kind in ("Q4_K", "Q5_K") else gguf.GGML_QUANT_SIZES[tensor.tensor_type][1] - 2)
    data[at : at + 2] = np.float16("nan").tobytes()
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(BadRequest, match=f"{LAYER}.*NaN or Inf"):
        lowbit.import_(tmp_path / "bad.gguf", tmp_path / "out")


def test_names_and_rows_are_those_of_the_package():
    """Against the package's own table of names, and transformers' reader above for the order of rows."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    modules = ("self_attn.q_norm", "self_attn.o_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    for module in [*(f"model.layers.1.{name}" for name in modules), "model.embed_tokens", "model.norm", "lm_head"]:
        assert tensor_name(f"{module}.weight") == f"{table.get_name(module)}.weight"
    order = row_order("self_attn.q_proj", 8, {"head_dim": 4}, ARCHITECTURES["llama"])
    assert order.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
