"""Both streams reach the statistics: inputs of the quantized prefix, and the same tokens in the original model."""

from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import lowbit
from lowbit.core.problem import LayerProblem
from lowbit.pipeline import quantize as pipeline
from lowbit.pipeline.plan import Assignment
from lowbit.recipes import PARTS
from lowbit.statistics import SecondMoment
from pipeline.tiny import save_tiny

SEEN: dict[str, list[torch.Tensor]] = {}


@dataclass(frozen=True)
class Watching:
    """A second moment that keeps what it was shown."""

    name: str = "watched"

    @property
    def reads(self):
        return frozenset({"inputs", "float_inputs"})

    def init(self, k):
        return SecondMoment().init(k)

    def update(self, state, seen):
        SEEN.setdefault(self.name, []).append(torch.stack([seen["inputs"], seen["float_inputs"]]))
        return SecondMoment().update(state, seen)

    def merge(self, a, b):
        return SecondMoment().merge(a, b)

    def problem(self, state, weight) -> tuple[LayerProblem, tuple]:
        return SecondMoment().problem(state, weight)

    def tokens(self, state):
        return state.tokens


@pytest.mark.parametrize("refresh", ["input", "block"])
def test_statistics_see_the_quantized_and_the_original_inputs(tmp_path, monkeypatch, refresh):
    monkeypatch.setitem(PARTS, "Watching", Watching)
    model = save_tiny("llama", tmp_path / "model")
    SEEN.clear()
    coarse = lowbit.recipes.optq(bits=2, refresh=refresh)
    watched = replace(coarse, statistic=Watching())
    calibration = lowbit.Calibration(samples=3, length=32)
    assignment = Assignment(coarse, (("*.1.*down_proj", watched),))
    pipeline.run(str(model), tmp_path / "out", assignment, calibration)

    quantized, original = torch.cat(SEEN["watched"], dim=1)
    windows = pipeline._windows(
        pipeline.SourceModel.open(str(model)), pipeline.plan(str(model), assignment, calibration), calibration, 32
    )
    expected_original = _inputs(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), windows)
    torch.testing.assert_close(original, expected_original, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(quantized, original, atol=1e-2)
    if refresh == "input":
        expected = _inputs(lowbit.load(tmp_path / "out", dtype=torch.float32), windows)
        torch.testing.assert_close(quantized, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def _inputs(model, windows):
    """What flows into the last down projection, [tokens, K]."""
    caught = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    model(windows)
    return caught[0].reshape(-1, caught[0].shape[-1])
