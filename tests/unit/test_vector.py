"""Vector codebooks: k-means does its work, both directions and both stages store what they promise."""

import pytest
import torch

from lowbit.codes import BlockScaled, FinerColumns, VectorCodebook
from lowbit.codes.kmeans import k_means
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.kernels.nearest import nearest
from lowbit.packing import pack, unpack
from lowbit.rounding import Ldlq, Nearest, Optq


def layer(n: int, k: int, lag: float = 0.9, dtype: torch.dtype = torch.float32) -> LayerProblem:
    generator = stream(0, "vector", str(n), str(k))
    mixing = torch.linalg.cholesky(lag ** (torch.arange(k)[:, None] - torch.arange(k)).abs().double())
    x = torch.randn(4 * k, k, generator=generator, dtype=torch.float64) @ mixing.T
    return LayerProblem(torch.randn(n, k, generator=generator).to(dtype), x.T @ x / len(x))


CODES = [
    VectorCodebook(1, 2),
    VectorCodebook(2, 4),
    VectorCodebook(4, 6, importance="diagonal"),
    VectorCodebook(4, 5, along="outputs"),
    VectorCodebook(2, 3, group_size=16),
    VectorCodebook(3, 4, along="outputs", group_size=8, codebooks="dynamic"),
    VectorCodebook(2, 3, residual_bits=2, group_size=24, codebooks="dynamic"),
    VectorCodebook(4, 12, residual_bits=3, along="outputs", importance="none"),
]


@pytest.mark.parametrize("code", CODES, ids=str)
def test_rounded_packed_and_read_back(code: VectorCodebook) -> None:
    problem = layer(24, 48)
    code.check(problem.shape)
    rounded = Ldlq(slab=12).round(problem, code)
    fields = code.fields(problem.shape)
    assert tuple(rounded.codes.shape) == fields["codes"].shape
    codes = unpack(pack(rounded.codes, fields["codes"]), fields["codes"])  # type: ignore[arg-type]
    side = {name: rounded.side[name].half() for name in fields if name != "codes"}
    assert all(tuple(side[name].shape) == fields[name].shape for name in side)
    assert torch.equal(code.decode(codes, side, torch.arange(48)), rounded.w_hat)


@pytest.mark.parametrize("along", ["inputs", "outputs"])
def test_tiles_lie_along_the_asked_direction(along: str) -> None:
    code = VectorCodebook(2, 1, along=along, importance="none")  # type: ignore[arg-type]
    pairs = torch.tensor([[1.0, -2.0], [3.0, 4.0]])[torch.tensor([[0, 1, 1], [1, 0, 0]])]
    weight = pairs.flatten(1) if along == "inputs" else pairs.transpose(1, 2).flatten(0, 1)
    problem = LayerProblem(weight, torch.eye(weight.shape[1], dtype=torch.float64))
    assert torch.equal(Nearest().round(problem, code).w_hat, weight)


@pytest.mark.parametrize(("dimension", "bits", "most"), [(1, 2, 0.120), (2, 4, 0.111), (4, 8, 0.099)])
def test_distortion_of_a_gaussian(dimension: int, bits: int, most: float) -> None:
    problem = layer(512, 512, lag=0.0)
    code = VectorCodebook(dimension, bits, importance="none")
    w_hat = Nearest().round(problem, code).w_hat
    assert float((w_hat - problem.weight).square().mean() / problem.weight.square().mean()) < most


def test_second_stage_lowers_the_error() -> None:
    problem = layer(64, 64)
    one = Nearest().round(problem, VectorCodebook(4, 4, importance="none"))
    two = Nearest().round(problem, VectorCodebook(4, 4, 4, importance="none"))
    assert float((two.w_hat - problem.weight).norm()) < 0.8 * float((one.w_hat - problem.weight).norm())


def test_importance_serves_the_columns_that_cost_most() -> None:
    problem = layer(64, 32)
    sizes = torch.logspace(-1, 1, 32, dtype=torch.float64)
    problem = LayerProblem(problem.weight, problem.hessian * sizes[:, None] * sizes)
    losses = {
        kind: problem.loss(Nearest().round(problem, VectorCodebook(2, 4, importance=kind)).w_hat)  # type: ignore[arg-type]
        for kind in ("none", "diagonal")
    }
    assert losses["diagonal"] < 0.9 * losses["none"]


def test_a_tile_of_inputs_takes_the_vector_that_costs_least_jointly() -> None:
    problem, code = layer(200, 4, dtype=torch.float64), VectorCodebook(4, 5)
    sizes = torch.tensor([0.3, 3.0, 1.0, 0.5], dtype=torch.float64)
    problem = LayerProblem(problem.weight, problem.hessian * sizes[:, None] * sizes)
    side = code.fit(problem)
    _, values = code.encode(problem.weight, side, torch.arange(4))
    # One tile is the whole row, so its cost is the loss itself, damped as the code damps.
    h = problem.hessian + 0.01 * problem.hessian.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    error = problem.weight[:, None] - side["codebook"][0]
    best = side["codebook"][0][torch.einsum("rci,ij,rcj->rc", error, h, error).argmin(1)]
    assert torch.equal(values, best)


def test_one_codebook_per_group_fits_better_than_one_for_all() -> None:
    problem = layer(64, 64)
    sizes = torch.logspace(-1, 1, 4).repeat_interleave(16)
    problem = LayerProblem(problem.weight * sizes, torch.eye(64, dtype=torch.float64))
    losses = [problem.loss(Nearest().round(problem, VectorCodebook(2, 4, group_size=g)).w_hat) for g in ("tensor", 16)]  # type: ignore[arg-type]
    assert losses[1] < 0.8 * losses[0]


def test_feedback_lowers_the_loss_in_both_directions() -> None:
    problem = layer(96, 96)
    for along in ("inputs", "outputs"):
        code = VectorCodebook(4, 6, along=along)  # type: ignore[arg-type]
        assert problem.loss(Ldlq().round(problem, code).w_hat) < 0.8 * problem.loss(
            Nearest().round(problem, code).w_hat
        )


def test_vectors_of_one_are_optq_with_levels_of_its_own() -> None:
    problem = layer(16, 48, dtype=torch.float64)
    code = VectorCodebook(1, 3, group_size=16, codebooks="dynamic")
    assert torch.equal(Optq().round(problem, code).codes, Ldlq().round(problem, code).codes)


def test_exact_bits_per_weight() -> None:
    code = VectorCodebook(4, 12, residual_bits=4, along="outputs", group_size=64)
    books = 2 * 16 * 4 * (2**12 + 2**4)
    assert bits_per_weight(code.fields((256, 128)), (256, 128)) == 16 / 4 + books / (256 * 128)


def test_k_means_recovers_empty_cells_and_is_deterministic() -> None:
    # The first centroids are drawn from some 4000 vectors, of which nearly all are the same: most cells start empty.
    rare = torch.randn(100, 2, generator=stream(1, "x"))
    x = torch.cat((rare, rare[:1].expand(30000, -1)))
    weight = torch.ones_like(x)
    a, b = k_means(x, weight, 64), k_means(x, weight, 64)
    assert torch.equal(a, b)
    assert bool(torch.isfinite(a).all())
    assert len(torch.unique(a, dim=0)) == 64
    assert float(nearest(rare, weight[:100], a)[1].mean()) < 0.05


def test_k_means_of_few_vectors_is_exact() -> None:
    x = torch.randn(5, 3, generator=stream(2, "x"))
    centroids = k_means(x, torch.ones_like(x), 8)
    assert centroids.shape == (8, 3)
    assert float(nearest(x, torch.ones_like(x), centroids)[1].max()) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VectorCodebook(0), "dimension=0"),
        (lambda: VectorCodebook(bits=17), "bits=17"),
        (lambda: VectorCodebook(bits=16, residual_bits=16), "residual_bits=16"),
        (lambda: VectorCodebook(along="rows"), "along='rows'.* inputs, outputs"),  # type: ignore[arg-type]
        (lambda: VectorCodebook(4, group_size=6), "group_size=6.* multiple of 4"),
        (lambda: VectorCodebook(12, along="outputs").check((64, 48)), "64 outputs .* dimension=8"),
        (lambda: VectorCodebook(4, group_size=32).check((64, 48)), "group_size=32.* 48 inputs"),
    ],
)
def test_refusals_say_what_to_do(make: object, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "code",
    [
        VectorCodebook(2, 3, importance="none"),
        VectorCodebook(2, 3, 2, group_size=4, codebooks="dynamic", dtype="int8"),
        VectorCodebook(2, 2, along="outputs", dtype="int8"),
        FinerColumns(VectorCodebook(2, 2, along="outputs"), 3, 0.2),
        BlockScaled(VectorCodebook(2, 3), 4),
    ],
    ids=str,
)
def test_collapsing_codebooks_stay_finite_and_large_weights_are_refused(code: VectorCodebook) -> None:
    weight = torch.zeros(4, 8)
    weight[1], weight[2, 3], weight[3] = 1e-30, 60000.0, torch.linspace(-1e-7, 1e-7, 8)
    for one in (weight, torch.zeros(4, 8), torch.full((4, 8), 3.0)):
        for rounder in (Nearest(), Ldlq()):
            rounded = rounder.round(LayerProblem(one, torch.eye(8).double()), code)
            assert bool(torch.isfinite(rounded.w_hat).all())
            assert all(bool(torch.isfinite(tensor).all()) for tensor in rounded.side.values())
            scales = [rounded.side[name] for name in code.fields((4, 8)) if name.endswith("book_scale")]
            assert all(bool((scale > 0).all()) for scale in scales)
    if not isinstance(code, BlockScaled):  # whose vectors are of size one
        with pytest.raises(BadRequest, match=r"VectorCodebook: weights up to .* do not fit the float16"):
            code.fit(LayerProblem(1e10 * (1 + torch.arange(32.0).view(4, 8)), torch.eye(8).double()))
