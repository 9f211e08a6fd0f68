"""E8P: the codebook is the lattice it claims to be, the search is exact, and each rate has its distortion."""

import pytest
import torch

from lowbit.codes import E8P
from lowbit.codes.e8p import _patterns, all_words, points
from lowbit.core.errors import BadRequest
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.kernels.e8p import nearest_e8p, nearest_e8p_reference
from lowbit.packing import pack, unpack


def gaussian(n: int, k: int, dtype: torch.dtype = torch.float32) -> LayerProblem:
    weight = torch.randn(n, k, generator=stream(0, "e8p", str(n), str(k)), dtype=dtype)
    return LayerProblem(weight, torch.eye(k, dtype=torch.float64))


def every(problem: LayerProblem) -> torch.Tensor:
    return torch.arange(problem.shape[1])


def test_patterns_are_those_of_the_paper() -> None:
    norms = _patterns().square().sum(1)
    assert len(torch.unique(_patterns(), dim=0)) == 256
    assert int((norms <= 10).sum()) == 227
    assert int((norms == 12).sum()) == 29
    assert bool((_patterns() % 1 == 0.5).all())


def test_words_are_distinct_and_on_the_shifted_lattice() -> None:
    words = all_words()
    assert len(torch.unique(words, dim=0)) == 65536
    quarter = torch.where((words[:, :1] - 0.25) % 1 == 0.5, 0.25, -0.25)
    unshifted = words - quarter
    assert bool((unshifted % 1 == 0.5).all())
    assert bool((unshifted.sum(1) % 2 == 0).all())
    assert float(words.square().mean().sqrt()) == pytest.approx(1.0938, abs=1e-4)


def test_second_stage_is_short_e8_vectors() -> None:
    norms = points().square().sum(1)
    assert len(torch.unique(points(), dim=0)) == 256
    assert [int((norms == norm).sum()) for norm in (0, 2, 4)] == [1, 240, 15]
    assert bool((points().sum(1) % 2 == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
def test_search_equals_comparing_with_every_word(dtype: torch.dtype, spread: float) -> None:
    x = spread * torch.randn(600, 8, generator=stream(1, "x"), dtype=dtype)
    patterns = _patterns()
    even = int((patterns.sum(1) % 2 == 0).sum())
    codes = nearest_e8p(x, patterns.to(dtype), even).long()
    words = all_words()
    ours = words[codes[:, 0] + 256 * codes[:, 1]]
    best = words[nearest_e8p_reference(x.double(), words)]
    # Equal distance, not equal word: float32 may settle a tie within its rounding either way.
    slack = 100 * torch.finfo(dtype).eps * (1 + spread**2)
    assert bool(((x - ours).square().sum(1) <= (x - best).square().sum(1) + slack).all())
    assert float((ours == best).all(1).double().mean()) > 0.99


@pytest.mark.parametrize(("bits", "low", "high"), [(2, 0.089, 0.092), (3, 0.0290, 0.0298), (4, 0.0082, 0.0086)])
def test_distortion_of_a_gaussian(bits: int, low: float, high: float) -> None:
    problem, code = gaussian(512, 512), E8P(bits)
    _, values = code.encode(problem.weight, code.fit(problem), every(problem))
    error = float((values - problem.weight).square().mean() / problem.weight.square().mean())
    assert low < error < high


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_and_read_back(bits: int) -> None:
    problem, code = gaussian(5, 48), E8P(bits)
    side = code.fit(problem)
    codes, values = code.encode(problem.weight, side, every(problem))
    fields = code.fields(problem.shape)
    assert 8 * fields["codes"].nbytes == bits * 5 * 48
    stored = unpack(pack(codes, fields["codes"]), fields["codes"])  # type: ignore[arg-type]
    assert torch.equal(code.decode(stored, {"scale": side["scale"].float()}, every(problem)), values)


def test_each_slab_on_its_own() -> None:
    problem, code = gaussian(7, 64), E8P(3)
    side = code.fit(problem)
    codes, values = code.encode(problem.weight, side, every(problem))
    part_codes, part = code.encode(problem.weight[:, 24:40], side, torch.arange(24, 40))
    assert torch.equal(part, values[:, 24:40])
    assert torch.equal(part_codes, codes[:, 3:5])


def test_headroom_widens_the_scale() -> None:
    problem = gaussian(16, 64)
    scale = float(E8P(2).fit(problem)["scale"])
    assert float(E8P(2, headroom=1.5).fit(problem)["scale"]) == pytest.approx(1.5 * scale)


def test_a_layer_of_zeros_stays_near_zero() -> None:
    problem = LayerProblem(torch.zeros(4, 16), torch.eye(16, dtype=torch.float64))
    code = E8P(2)
    _, values = code.encode(problem.weight, code.fit(problem), every(problem))
    assert float(values.abs().max()) < 1e-30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: E8P(1), "bits=1"),
        (lambda: E8P(2, headroom=0), "headroom=0"),
        (lambda: E8P(2).check((16, 172)), r"does not divide the 172 inputs .* IntegerGrid"),
    ],
)
def test_refusals_say_what_to_do(make: object, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make()  # type: ignore[operator]
