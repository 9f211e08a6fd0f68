"""Every weight format of the family goes the whole way on a small model: quantized, killed and resumed, loaded,
generating; what its docstring counts is what lies on the disk."""

import functools
import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import lowbit
from lowbit.core.errors import BadRequest
from lowbit.pipeline.quantize import Calibration, Options
from lowbit.recipes import make_recipe
from pipeline.killing import Killed, kill_at
from pipeline.tiny import contents, save_tiny

SETTINGS = {"calibration": Calibration(samples=2, length=16), "targets": ["*.0.*"]}
IDS = torch.arange(24).view(2, 12) * 7

N, K, INDEX = 16, 32, 5  # the layer whose bytes are counted below, and the bits of an input's index


def outliers(count, counts=6):
    """Bits of sparse outliers: values, indices and, for each row, how many."""
    return count * 16 + up(count * INDEX) + up(N * counts)


def up(bits):
    """Whole bytes."""
    return 8 * -(-bits // 8)


FORMATS = {
    "llm_fp4": ({}, 4 * N * K + 16 * N + 8),
    "zeroquant_fp6": ({}, 6 * N * K + 16 * N),
    "normal_float": ({"group_size": 16}, None),
    "block_float": ({"block_size": 16}, 4 * N * K + 8 * N * K // 16),
    "dint": ({}, 4 * N * K + 16 * N),
    "nupes": ({}, None),
    "ternary": ({"group_size": 16}, N * up(8 * -(-K // 5)) + 16 * N * K // 16),
    "squeezellm": ({"bits": 2}, 2 * N * K + 16 * 4 * N + outliers(round(0.005 * N * K))),
    "squeezellm by inputs": ({"sensitive": 0, "importance": "diagonal"}, 3 * N * K + 16 * 8 * N + outliers(2)),
    "jlcm": ({"tables": 3}, 2 * N * K + 16 * 3 * 4 + up(2 * N)),
    "lcq": ({"group_size": 16}, 2 * N * K + 16 * 3 * N * K // 16 + 16 * 2 * 4),
    "gptvq": ({"group_size": 16}, 2 * N * K + (8 * 2 * 16 + 16) * K // 16),
    "gptvq with scales of blocks": ({"group_size": 16, "block_size": 8}, None),
    "vptq": ({"index_bits": 5, "residual_bits": 3}, 2 * N * K + 16 * 4 * (2**5 + 2**3)),
    "vptq with finer columns": ({"index_bits": 5, "outlier_bits": 6}, None),
    "gptqt": ({"fine_bits": 4}, 3 * N * K + 16 * 4 * N),
    "db_llm": ({"group_size": 16}, 2 * N * K + 16 * 2 * N * K // 16),
    "pb_llm": ({"group_size": 16}, 2 * N * K + N * up(7 * 3) + 32 * N * K // 16 + 32 * N),
    "dgq": ({"group_size": 16}, 4 * N * K + N * K // 16 * 12 + 16 * N),
    "finequant": ({"group_size": 16, "finest": 8}, 4 * N * K + 16 * N * K // 16 + up(K // 8)),
    "slim_llm": ({"group_size": 8}, 2 * N * K + 16 * 4 * N + N * up(3 * 4) + up(4 * 4)),
    "spqr": ({"fraction": 0.02}, 3 * N * K + 2 * (N * up(3 * 2) + 16 * N) + up(INDEX * K) + outliers(10)),
    "easyquant": ({"fraction": 0.02}, 4 * N * K + 16 * N + outliers(round(0.02 * N * K))),
    "gwq": ({"group_size": 16, "fraction": 0.02}, 3 * N * K + 16 * 2 * N + up(3 * 2 * N) + outliers(10)),
    "lorc": ({"rank": 2}, 4 * N * K + 16 * N + up(4 * N) + 8 * 2 * (N + K + 4)),
    "lq_lora": (
        {"rank": 2, "turns": 2, "group_size": 16, "metric": "fisher"},
        3 * N * K + 8 * 2 * N + 16 * N + 16 * 2 * (N + K),
    ),
}
"""Settings, and the bits of a layer [16, 32] by the docstring where that is a line."""

KILLED = ("squeezellm", "gptvq", "vptq with finer columns", "slim_llm", "finequant", "lq_lora", "pb_llm", "ternary")
"""One of each way to store codes and of each that looks at more than the layer."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama_biased", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """The record and the folder of a run that nothing stopped, made once for each name."""

    @functools.cache
    def of(name):
        out = tmp_path_factory.mktemp("finished") / "out"
        return lowbit.quantize(model, out, recipe_of(name), **SETTINGS), out

    return of


def recipe_of(name):
    return make_recipe(name.split()[0], FORMATS[name][0])


def stored_bits(folder, layer):
    """Everything that a folder stores for a layer but its bias, in bits."""
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else ["model.safetensors"]
    total = 0
    for file in files:
        with safe_open(folder / file, "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(f"{layer}.") and not name.endswith(".bias")]  # noqa: SIM118
            total += sum(8 * tensors.get_tensor(name).nbytes for name in names)
    return total


@pytest.mark.parametrize("name", FORMATS)
def test_end_to_end(name, model, finished):
    record, out = finished(name)
    loaded = lowbit.load(out, dtype=torch.float32)
    with torch.no_grad():
        got = loaded(IDS).logits
        assert bool(torch.isfinite(got).all())
        dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        for layer in record["layers"]:
            dense.get_submodule(layer["name"]).weight.copy_(loaded.get_submodule(layer["name"]).dequantize())
        assert torch.allclose(got, dense(IDS).logits, atol=1e-3 * float(got.abs().max()))
    assert loaded.generate(IDS[:1], max_new_tokens=3, do_sample=False).shape == (1, 15)
    for layer in record["layers"]:
        bits = stored_bits(out, layer["name"])
        assert bits == layer["bits_per_weight"] * layer["shape"][0] * layer["shape"][1]
        if layer["shape"] == [N, K] and FORMATS[name][1] is not None:
            assert bits == FORMATS[name][1]


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_resumed_gives_the_same_bytes(name, model, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        kill_at(patched, 6, "middle")
        with pytest.raises(Killed):
            lowbit.quantize(model, tmp_path / "out", recipe_of(name), **SETTINGS)
    with pytest.raises(BadRequest):
        lowbit.load(tmp_path / "out")
    lowbit.quantize(model, tmp_path / "out", recipe_of(name), **SETTINGS, options=Options(resume=True))
    assert contents(tmp_path / "out") == contents(finished(name)[1])
