"""What is known is not run again, and nothing comes out differently for it."""

import pytest
import torch

import lowbit
from lowbit.pipeline import drive
from lowbit.pipeline.capture import record_calls, run_block
from lowbit.pipeline.replay import find_tails, replayed
from lowbit.pipeline.source import SourceModel
from pipeline.tiny import CONFIGS, save_tiny

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "gemma2"])  # which returns probabilities
def test_attention_is_its_projection_of_what_was_kept(kind, tmp_path):
    source = SourceModel.open(str(save_tiny(kind, tmp_path / kind)))
    with source.outside_blocks() as model:
        hidden, calls = record_calls(model, source.blocks, IDS)
    block = source.blocks[0]
    source.load(block.module, block.name)
    tails = find_tails(block, hidden, calls[0])
    (tail,) = [tail for tail in tails.values() if "att" in tail.module]
    modules, kept, ran = dict(block.module.named_modules()), {}, []
    projection = modules[tail.layer.removeprefix(f"{block.name}.")]
    spared = (name for name, _ in block.linears() if name.startswith(f"{tail.module}.") and name != tail.layer)
    first = modules[next(spared).removeprefix(f"{block.name}.")]
    handle = projection.register_forward_pre_hook(lambda module, args: kept.update({tail.layer: args[0]}))
    with torch.no_grad():
        expected = run_block(block.module, hidden, calls[0])
        handle.remove()
        first.register_forward_hook(lambda *args: ran.append(args))
        with replayed(block, tails, kept):
            again = run_block(block.module, hidden, calls[0])
        assert not ran
        assert torch.equal(again, expected)
        assert torch.equal(run_block(block.module, hidden, calls[0]), expected)
        assert ran


def test_a_module_that_returns_more_than_its_last_layer_is_run(tmp_path):
    """Attention that returns its probabilities, and experts, whose outputs are added up."""
    source = SourceModel.open(str(save_tiny("qwen3_moe", tmp_path / "moe")))
    source.model.config._attn_implementation = "eager"
    with source.outside_blocks() as model:
        hidden, calls = record_calls(model, source.blocks, IDS)
    source.load(source.blocks[0].module, source.blocks[0].name)
    assert find_tails(source.blocks[0], hidden, calls[0]) == {}


@pytest.mark.parametrize("refresh", ["input", "block"])
def test_the_same_bytes_come_out_with_and_without(refresh, tmp_path, monkeypatch):
    """In memory, on disk, and with nothing kept; of a block quantized as a whole nothing may be."""
    model = save_tiny("llama", tmp_path / "model")
    recipe, calibration = lowbit.recipes.qronos(bits=2, refresh=refresh), lowbit.Calibration(samples=6, length=24)
    ways, found, kept = {"memory": 1 << 30, "disk": 0, "nothing": 1 << 30}, {}, []
    in_room = drive._in_room
    monkeypatch.setattr(drive, "BATCH_TOKENS", 48)
    monkeypatch.setattr(drive, "_in_room", lambda *args: kept.append(way) or in_room(*args))
    for way, budget in ways.items():
        if way == "nothing":
            monkeypatch.setattr(drive, "_worth_keeping", lambda *args: frozenset())
        out, options = tmp_path / way, lowbit.Options(budget=budget)
        lowbit.quantize(model, out, recipe, calibration=calibration, options=options)
        found[way] = (out / "model.safetensors").read_bytes()
    assert found["memory"] == found["disk"] == found["nothing"]
    assert set(kept) == ({"memory", "disk"} if refresh == "input" else set())
