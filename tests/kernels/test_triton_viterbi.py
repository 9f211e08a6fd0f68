"""The GPU's Viterbi search, by Triton's interpreter: the paths that the CPU's finds, bit for bit."""

import pytest
import torch

from lowbit.core.random import stream
from lowbit.kernels import viterbi
from lowbit.kernels.viterbi import Trellis, anywhere, tail_biting

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not checked (pip install lowbit[gpu])")

from lowbit.kernels.triton import viterbi as on_gpu

SHAPES = [pytest.param((5, 1, 1), marks=pytest.mark.slow), (6, 2, 1), (6, 2, 2), (3, 2, 1), (2, 2, 1)]
"""(L, b, V), small because the interpreter is slow; one with more bits entering than edges have, one without memory."""


def problem(shape: tuple[int, int, int], steps: int = 8) -> tuple[Trellis, torch.Tensor]:
    length, bits, dimension = shape
    rng = stream(0, "triton viterbi", str(shape))
    targets = torch.randn(2, steps, dimension, generator=rng)
    targets[1, 5] = 1e30
    return Trellis(torch.randn(1 << length, dimension, generator=rng), bits), targets


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_paths_are_those_of_the_cpu(shape: tuple[int, int, int]) -> None:
    some, targets = problem(shape)
    free, ends = anywhere(targets), torch.tensor([some.edges // 2, some.edges - 1])
    for first, last in ((free, free), (ends, torch.tensor([-1, 0]))):
        expected = viterbi.search(targets, some, first, last)
        assert torch.equal(on_gpu.search(targets, some, first, last), expected)


def test_blocks_of_edges_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    some, targets = problem((6, 2, 1))
    monkeypatch.setattr(on_gpu, "_BLOCK", 8)
    ends = anywhere(targets)
    assert torch.equal(on_gpu.search(targets, some, ends, ends), viterbi.search(targets, some, ends, ends))


def test_sequences_beyond_the_memory_for_decisions_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    some, targets = problem((6, 2, 1))
    monkeypatch.setattr(on_gpu, "_DECISIONS", targets.shape[1] * some.edges)
    ends = anywhere(targets)
    assert torch.equal(on_gpu.search(targets, some, ends, ends), viterbi.search(targets, some, ends, ends))


def test_closed_paths_are_those_of_the_cpu() -> None:
    some, targets = problem((6, 2, 1))
    assert torch.equal(tail_biting(targets, some, by=on_gpu.search), tail_biting(targets, some))


def test_no_sequences_are_no_states() -> None:
    some, targets = problem((6, 2, 1))
    assert tail_biting(targets[:0], some, by=on_gpu.search).shape == (0, 8)
