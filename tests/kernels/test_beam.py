"""The beam's kernel against its reference, and the levels it searches among."""

import pytest
import torch

from laws.problems import correlated
from lowbit.codes import IntegerGrid
from lowbit.core.fields import Bits
from lowbit.core.levels import has_levels, levels
from lowbit.kernels.beam import beam_slab, beam_slab_reference
from lowbit.rounding import Beam

ROWS, WIDTH, COLUMNS, LEVELS = 7, 5, 9, 6


def random_slab(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=g, dtype=dtype)
    target = weight[:, None] + 0.1 * torch.randn(ROWS, WIDTH, COLUMNS, generator=g, dtype=dtype)
    feedback = torch.randn(COLUMNS, COLUMNS, generator=g, dtype=dtype).triu(1) + torch.eye(COLUMNS, dtype=dtype)
    cost = torch.rand(COLUMNS, generator=g, dtype=torch.float64)
    known = torch.randn(ROWS, COLUMNS, LEVELS, generator=g, dtype=dtype).sort(dim=-1).values
    score = torch.rand(ROWS, WIDTH, generator=g, dtype=torch.float64).sort(dim=1).values
    score[2, 3:] = score[4, 1:] = torch.inf
    return weight, target, feedback, cost, known, score


@pytest.mark.parametrize("count", [1, 2, 4, LEVELS, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernel_is_its_reference(dtype, count):
    """Survivors that are there: the same choices, errors, parents and scores."""
    for seed in range(20):
        slab = random_slab(seed, dtype)
        before = slab[-1].clone()
        *ours, score = beam_slab(*slab, count)
        *theirs, expected = beam_slab_reference(*slab, count)
        assert torch.equal(slab[-1], before)
        there = torch.isfinite(score)
        assert torch.equal(there, torch.isfinite(expected))
        torch.testing.assert_close(score[there], expected[there])
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a[there], b[there])


def test_values_stored_twice_are_tried_once():
    """Two zeros, as floats have: with two candidates a survivor tries zero and one other."""
    weight = torch.full((1, 1), 0.1, dtype=torch.float64)
    known = torch.tensor([[[-1.0, 0.0, 0.0, 1.0]]], dtype=torch.float64)
    score = torch.tensor([[0.0, torch.inf, torch.inf]], dtype=torch.float64)
    slab = (weight, weight[:, None].expand(1, 3, 1), torch.eye(1, dtype=torch.float64), torch.ones(1), known, score)
    index, _, _, scores = beam_slab(*slab, 2)
    assert known[0, 0, index[0, :2, 0].long()].tolist() == [0.0, 1.0]
    assert int(torch.isfinite(scores).sum()) == 2


class Backwards(IntegerGrid):
    """Numbers its levels from the largest down."""

    def encode(self, target, side, columns):
        codes, values = super().encode(target, side, columns)
        return (self.levels.top - codes).to(torch.uint8), values

    def decode(self, codes, side, columns):
        return super().decode(self.levels.top - codes, side, columns)


def test_levels_ascend_whatever_their_codes():
    problem, columns = correlated(0), torch.arange(24)
    for code in (IntegerGrid(3, 8), Backwards(3, 8)):
        side = code.fit(problem)
        known = levels(code, side, columns, problem.shape)
        assert bool((known.values.diff(dim=2) > 0).all())
        for rank in range(8):
            decoded = code.decode(known.codes[..., rank].contiguous(), side, columns)
            assert torch.equal(decoded, known.values[..., rank])
    rounded = Beam(4).round(problem, Backwards(3))
    assert torch.equal(rounded.w_hat, Beam(4).round(problem, IntegerGrid(3)).w_hat)


def test_codes_of_many_bits_or_other_shapes_have_no_levels():
    class Wide(IntegerGrid):
        def fields(self, shape):
            return {"codes": Bits(shape, 9)}

    class Joined(IntegerGrid):
        def fields(self, shape):
            return {"codes": Bits((shape[0] * shape[1],), 4)}

    assert has_levels(IntegerGrid(8), (6, 24))
    assert not has_levels(Wide(8), (6, 24))
    assert not has_levels(Joined(4), (6, 24))
