"""Models written by tools/make_synthetic.py are models to everything that reads models, and the same every time."""

import importlib.util
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import lowbit
from lowbit.formats.shards import Shards
from pipeline.tiny import contents

TOOL = Path(__file__).parents[2] / "tools" / "make_synthetic.py"


def tool():
    spec = importlib.util.spec_from_file_location("make_synthetic", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_synthetic_model_in_several_shards_is_quantized(tmp_path, monkeypatch):
    synthetic = tool()
    monkeypatch.setattr(synthetic, "_SHARD_BYTES", 100_000)
    synthetic.write_model(tmp_path / "model", synthetic.SHAPES["tiny"])
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    weight = model.model.layers[1].mlp.up_proj.weight
    assert abs(float(weight.detach().std()) - 0.02) < 0.001
    calibration = lowbit.Calibration(samples=2, length=32)
    lowbit.quantize(tmp_path / "model", tmp_path / "out", "rtn", calibration=calibration)
    lowbit.load(tmp_path / "out")


def test_the_same_model_every_time_whatever_it_is_written_in(tmp_path, monkeypatch):
    synthetic = tool()
    synthetic.write_model(tmp_path / "one", synthetic.SHAPES["tiny"])
    monkeypatch.setattr(synthetic, "_PIECE", 1000)
    synthetic.write_model(tmp_path / "two", synthetic.SHAPES["tiny"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_sizes_are_those_of_their_names(tmp_path):
    synthetic = tool()
    for name, billions in (("1B", 1.1), ("7B", 6.7), ("8B", 8.0), ("70B", 69)):
        count = sum(torch.Size(dims).numel() for _, dims in synthetic.tensors(synthetic.SHAPES[name]))
        assert abs(count / 1e9 / billions - 1) < 0.05, name
    synthetic.write_model(tmp_path / "model", synthetic.SHAPES["tiny"])
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == Shards.open(tmp_path / "model").nbytes
