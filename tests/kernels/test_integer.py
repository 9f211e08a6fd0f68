"""The numba kernel of integer grids equals its plain torch reference bit for bit."""

import pytest
import torch

from laws.statements import threads
from lowbit.kernels.integer import round_slab, round_slab_reference

ZEROS = {
    "integer": lambda shape, top: torch.randint(0, top + 1, shape).float(),
    "half": lambda shape, top: torch.full(shape, 0.5),
    "middle": lambda shape, top: torch.full(shape, float((top + 1) // 2)),
}


def inputs(n, w, top, kind, dtype, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weight = torch.randn(n, w, dtype=dtype)
        target = weight + 0.1 * torch.randn(n, w, dtype=dtype)
        feedback = torch.randn(w, w, dtype=dtype) * 0.3
        scale = (torch.rand(n, w, dtype=dtype) + 0.1) * 4 / top
        return weight, target, feedback, (scale, ZEROS[kind]((n, w), top).to(dtype)), top


def equal(got, expected):
    return torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1]) and got[1].dtype == expected[1].dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ZEROS)
@pytest.mark.parametrize("top", [1, 3, 15, 255])
@pytest.mark.parametrize(("n", "w"), [(1, 1), (1, 17), (5, 1), (33, 128), (64, 31)])
def test_equals_reference(n, w, top, kind, dtype):
    given = inputs(n, w, top, kind, dtype)
    assert equal(round_slab(*given), round_slab_reference(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_views_are_as_good_as_copies(dtype):
    """Slices of columns, transposes and expanded side information, as the rounders pass them."""
    weight, target, feedback, (scale, zero), top = inputs(9, 40, 15, "integer", dtype)
    given = (
        weight[:, 8:24],
        target[:, 8:24],
        feedback[8:24, 8:24].T,
        (scale[:, :1].expand(9, 16), zero[:1, :1].expand(9, 16)),
        top,
    )
    copies = (*[t.contiguous() for t in given[:3]], tuple(t.contiguous() for t in given[3]), top)
    assert equal(round_slab(*given), round_slab_reference(*copies))
    assert equal(round_slab_reference(*given), round_slab_reference(*copies))


def test_ties_and_clamping():
    target = torch.tensor([[-100.0, -0.5, 0.5, 1.5, 2.5, 100.0]])
    side = (torch.ones(1, 6), torch.full((1, 6), 2.0))
    given = (target.clone(), target, torch.zeros(6, 6), side, 7)
    assert round_slab(*given)[0].tolist() == [[0, 2, 2, 4, 4, 7]]
    assert equal(round_slab(*given), round_slab_reference(*given))


def test_inputs_are_left_alone_and_threads_do_not_matter():
    given = inputs(64, 64, 15, "integer", torch.float32)
    before = [t.clone() for t in (*given[:3], *given[3])]
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(round_slab(*given))
    assert equal(*results)
    assert all(torch.equal(old, new) for old, new in zip(before, (*given[:3], *given[3]), strict=True))


def test_only_the_part_above_the_diagonal_is_read():
    weight, target, feedback, side, top = inputs(5, 12, 15, "integer", torch.float64)
    spoiled = feedback.triu(1) + torch.full_like(feedback, torch.nan).tril()
    assert equal(round_slab(weight, target, spoiled, side, top), round_slab(weight, target, feedback, side, top))
