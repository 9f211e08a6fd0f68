"""The Viterbi search: the oracle is exhaustive, integers lose nothing that counts, closed paths close."""

from itertools import product

import pytest
import torch
from torch import Tensor

from laws.statements import threads
from lowbit.core.random import stream
from lowbit.kernels.viterbi import Trellis, anywhere, search, search_reference, tail_biting

SHAPES = [(9, 1, 1), (10, 2, 1), (9, 3, 1), (13, 4, 1), (9, 5, 1), (10, 3, 2), (9, 7, 2)]
"""(L, b, V): butterflies of all sizes, with few and with all lanes, and fans, one with more bits than edges have."""
COMPILED_ONLY_HERE = [(9, 3, 1), (9, 7, 2)]
"""A kernel of its own takes seconds to compile."""


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=stream(0, "viterbi", str(shape)))


def trellis(length: int, bits: int, dimension: int = 1) -> Trellis:
    return Trellis(gaussian(1 << length, dimension), bits)


def distance(targets: Tensor, trellis: Trellis, states: Tensor) -> Tensor:
    """Squared distances [B], float64."""
    return (trellis.values[states.long()] - targets).double().square().sum((1, 2))


def is_path(trellis: Trellis, states: Tensor) -> bool:
    return bool(((states[:, :-1] & (trellis.edges - 1)) == states[:, 1:] >> trellis.bits).all())


def all_paths(trellis: Trellis, first: int, steps: int) -> Tensor:
    """The states [2^(b T), T] of every path that leaves edge `first`."""
    states, size = torch.tensor([[first]]), len(trellis.values)
    for _ in range(steps):
        new = torch.arange(1 << trellis.bits).repeat(len(states))
        states = states.repeat_interleave(1 << trellis.bits, 0)
        states = torch.cat([states, ((states[:, -1] << trellis.bits) % size | new)[:, None]], 1)
    return states[:, 1:]


@pytest.mark.parametrize(("length", "bits", "steps"), [(3, 1, 8), (4, 2, 6)])
@pytest.mark.parametrize("way", [search_reference, search])
def test_no_path_is_nearer(way, length: int, bits: int, steps: int) -> None:
    """Every pair of ends and open ends, against all paths there are."""
    tiny, targets = trellis(length, bits), 0.5 * gaussian(1, steps, 1)
    best: dict[tuple[int, int], float] = {}
    for first in range(tiny.edges):
        states = all_paths(tiny, first, steps)
        costs, lasts = distance(targets, tiny, states), states[:, -1] % tiny.edges
        best |= {(first, last): float(costs[lasts == last].min()) for last in range(tiny.edges)}
    for first, last in best:
        found = way(targets, tiny, torch.tensor([first]), torch.tensor([last]))
        assert is_path(tiny, found)
        assert (int(found[0, 0]) >> bits, int(found[0, -1]) % tiny.edges) == (first, last)
        assert float(distance(targets, tiny, found)) == pytest.approx(best[first, last], rel=2e-3)
    free = way(targets, tiny, anywhere(targets), anywhere(targets))
    assert float(distance(targets, tiny, free)) == pytest.approx(min(best.values()), rel=2e-3)


@pytest.mark.parametrize(
    "shape",
    [pytest.param(shape, marks=pytest.mark.slow if shape in COMPILED_ONLY_HERE else ()) for shape in SHAPES],
    ids=str,
)
def test_integers_lose_under_a_thousandth(shape: tuple[int, int, int]) -> None:
    some, targets = trellis(*shape), gaussian(24, 64, shape[2])
    around = search_reference(targets.roll(32, 1), some, anywhere(targets), anywhere(targets))
    seam = around[:, 31].long() & (some.edges - 1)
    for ends in (anywhere(targets), seam):
        exact, found = (way(targets, some, ends, ends) for way in (search_reference, search))
        assert is_path(some, found)
        least, ours = (float(distance(targets, some, states).sum()) for states in (exact, found))
        assert least - 1e-6 <= ours < least * 1.001
    assert torch.equal(found[:, 0] >> some.bits, seam.int())
    assert torch.equal(found[:, -1] & (some.edges - 1), seam.int())


@pytest.mark.parametrize("shape", [(10, 2, 1), (10, 3, 2), (9, 5, 1)], ids=str)
def test_closed_paths_close_whatever_the_targets(shape: tuple[int, int, int]) -> None:
    some, targets = trellis(*shape), gaussian(7, 32, shape[2])
    targets[0], targets[1], targets[2], targets[3, 5] = 0.0, 1e4, -3.0, 1e30
    targets[4, :16] = 100.0
    for window in (None, 8, 1):
        states = tail_biting(targets, some, window)
        assert is_path(some, states)
        assert torch.equal(states[:, -1] & (some.edges - 1), states[:, 0] >> some.bits)


@pytest.mark.parametrize("shape", [(10, 2, 1), (10, 3, 2), (9, 5, 1)], ids=str)
def test_ends_are_kept_however_much_they_cost(shape: tuple[int, int, int]) -> None:
    some = trellis(*shape)
    edges, targets = torch.arange(some.edges), 100 * gaussian(some.edges, 16, shape[2])
    states = search(targets, some, edges, edges.flip(0))
    assert is_path(some, states)
    assert torch.equal(states[:, 0] >> some.bits, edges.int())
    assert torch.equal(states[:, -1] & (some.edges - 1), edges.flip(0).int())


def test_long_sequences_do_not_run_over() -> None:
    some, targets = trellis(9, 1), gaussian(2, 1500, 1)
    exact, found = (way(targets, some, *[anywhere(targets)] * 2) for way in (search_reference, search))
    assert float(distance(targets, some, found).sum()) < 1.001 * float(distance(targets, some, exact).sum())


def test_closed_paths_are_nearly_the_best_closed_paths() -> None:
    """Against the best over all seams, and a short window against the whole sequence."""
    some, targets = trellis(6, 2), gaussian(200, 32, 1)
    seams = product(range(some.edges), [targets])
    every = [distance(x, some, search(x, some, *[torch.full((len(x),), e)] * 2)) for e, x in seams]
    best, found = torch.stack(every).min(0).values, distance(targets, some, tail_biting(targets, some))
    assert bool((found >= best * 0.999).all())
    assert float(found.sum() / best.sum()) < 1.02
    short = distance(targets, some, tail_biting(targets, some, 12))
    assert float(short.sum() / found.sum()) < 1.02


def test_the_seam_may_be_found_by_the_oracle_too() -> None:
    some, targets = trellis(6, 2), gaussian(8, 32, 1)
    ours, exact = tail_biting(targets, some), tail_biting(targets, some, by=search_reference)
    assert float(distance(targets, some, ours).sum()) == pytest.approx(
        float(distance(targets, some, exact).sum()), rel=1e-3
    )


def test_sequences_and_threads_do_not_meet() -> None:
    some, targets = trellis(10, 2), gaussian(11, 40, 1)
    with threads(1):
        alone = torch.cat([tail_biting(x[None], some) for x in targets])
        together = tail_biting(targets, some)
    with threads(2):
        shared = tail_biting(targets, some)
    assert torch.equal(alone, together)
    assert torch.equal(together, shared)


def test_a_state_without_memory_is_the_nearest_value() -> None:
    some, targets = trellis(4, 4), gaussian(9, 8, 1)
    states = search(targets, some, anywhere(targets), anywhere(targets))
    nearest = (targets - some.values[:, 0]).abs().argmin(-1)
    assert torch.equal(states.long(), nearest)


def test_no_sequences_are_no_states() -> None:
    some, none = trellis(10, 2), torch.empty(0, 32, 1)
    assert tail_biting(none, some).shape == (0, 32)
