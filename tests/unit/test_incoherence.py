"""Rotations and scales: same function, same loss, incoherent weights, and a bit-identical map when read back."""

import pytest
import torch

from lowbit.core.errors import BadRequest
from lowbit.core.fields import Array, Bits
from lowbit.core.maps import Identity
from lowbit.core.parts import Transform
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.transforms import ActOrder, Chain, ChannelScales, RandomizedHadamard, RandomKronecker, Rescale

SCALES = [Rescale(), ChannelScales(), ChannelScales("left"), ChannelScales("right"), ChannelScales("left", size=0.9)]
ROTATIONS = [
    RandomizedHadamard(),
    RandomizedHadamard(sides="right"),
    RandomizedHadamard(width=16),
    RandomKronecker(),
    Chain((RandomizedHadamard(sides="left"), RandomizedHadamard(64, "right"))),
]
EXL3 = Chain(
    (
        ChannelScales("left"),
        RandomizedHadamard(128, "left"),
        ChannelScales("right"),
        RandomizedHadamard(128, "right"),
    )
)
EVERY = [*SCALES, *ROTATIONS, EXL3, Chain((Rescale(), RandomKronecker()))]
# 44 = 4 * 11 is a Paley order, 86 = 2 * 43 has no Hadamard factor, 23 is prime.
SHAPES = [(48, 44), (86, 64), (23, 40)]


def problem(n: int, k: int, dtype: torch.dtype = torch.float64) -> LayerProblem:
    rng = stream(0, "problem", str(n), str(k))
    x = torch.randn(4 * k, k, generator=rng, dtype=torch.float64)
    x *= torch.logspace(-1, 1, k, dtype=torch.float64)
    y = torch.randn(2 * n, n, generator=rng, dtype=torch.float64)
    weight = torch.randn(n, k, generator=rng, dtype=torch.float64) * torch.logspace(-1, 0, n)[:, None]
    return LayerProblem(weight.to(dtype), x.T @ x / len(x), y.T @ y / len(y))


def fitting(transform: Transform, shape: tuple[int, int]) -> bool:
    try:
        transform.check(shape)
    except BadRequest:
        return False
    return True


CASES = [(t, s) for t in EVERY for s in SHAPES if fitting(t, s)]


def test_nearly_every_pair_fits() -> None:
    # 86 = 2 * 43 and 23 have no divisor from 8 to 16; everything else must be accepted.
    assert len(EVERY) * len(SHAPES) - len(CASES) == 2


@pytest.mark.parametrize(("transform", "shape"), CASES, ids=str)
def test_loss_is_the_same_in_the_new_coordinates(transform: Transform, shape: tuple[int, int]) -> None:
    old = problem(*shape)
    fitted = transform.fit(old, stream(1, "fit"))
    new = fitted.forward(old)
    w_hat = new.weight + 0.1 * torch.randn(shape, generator=stream(2, "error"), dtype=torch.float64)
    assert new.loss(w_hat) == pytest.approx(old.loss(fitted.undo(w_hat)), rel=1e-6)
    torch.testing.assert_close(fitted.undo(new.weight), old.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("transform", "shape"), CASES, ids=str)
def test_function_is_the_same(transform: Transform, shape: tuple[int, int]) -> None:
    old = problem(*shape)
    fitted = transform.fit(old, stream(1, "fit"))
    x = torch.randn(7, shape[1], generator=stream(3, "x"), dtype=torch.float64)
    y = fitted.left.inverse().apply(fitted.right.apply(x) @ fitted.forward(old).weight.T)
    torch.testing.assert_close(y, x @ old.weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("transform", "shape"), CASES, ids=str)
def test_read_back_bit_for_bit(transform: Transform, shape: tuple[int, int]) -> None:
    old = problem(*shape, torch.float32)
    fitted = transform.fit(old, stream(1, "fit"))
    fields, stored = transform.fields(shape), transform.tensors(fitted)
    assert stored.keys() == fields.keys()
    for name, field in fields.items():
        assert tuple(stored[name].shape) == field.shape
        if isinstance(field, Array):
            assert stored[name].dtype == field.dtype
        else:
            assert isinstance(field, Bits)
            assert int(stored[name].max()) < 2**field.bits
    read = transform.restore(stored, shape)
    weight = torch.randn(shape, generator=stream(4, "w_hat"))
    assert torch.equal(read.undo(weight), fitted.undo(weight))
    assert torch.equal(read.forward(old).hessian, fitted.forward(old).hessian)


@pytest.mark.parametrize("transform", ROTATIONS, ids=str)
def test_rotations_are_orthogonal_and_depend_on_the_stream(transform: Transform) -> None:
    old = problem(48, 64)
    a, b, c = (transform.fit(old, stream(seed, "fit")) for seed in (1, 1, 2))
    eye = torch.eye(64, dtype=torch.float64)
    assert a.left.is_orthogonal
    assert a.right.is_orthogonal
    torch.testing.assert_close(a.right.apply(eye) @ a.right.apply(eye).T, eye, rtol=0, atol=1e-13)
    assert torch.equal(a.right.apply(eye), b.right.apply(eye))
    assert not torch.equal(a.right.apply(eye), c.right.apply(eye))


@pytest.mark.parametrize("n", [256, 352, 172, 96])
def test_one_large_weight_is_spread_evenly(n: int) -> None:
    spike = torch.zeros(n, n, dtype=torch.float64)
    spike[3, 5] = 1
    whole = LayerProblem(spike, torch.eye(n, dtype=torch.float64))
    flat = RandomizedHadamard().fit(whole, stream(0, "a")).forward(whole).weight
    torch.testing.assert_close(flat.abs(), torch.full_like(flat, 1 / n), rtol=1e-12, atol=0)
    kron = RandomKronecker().fit(whole, stream(0, "b")).forward(whole).weight
    assert float(kron.abs().max()) < 40 / n


def test_scaled_rows_and_columns_have_equal_size() -> None:
    old = problem(48, 64)
    left = ChannelScales("left").fit(old, stream(0, "a")).forward(old).weight
    torch.testing.assert_close(left.square().mean(1), left.square().mean().expand(48), rtol=3e-3, atol=0)
    both = ChannelScales().fit(old, stream(0, "a")).forward(old).weight
    torch.testing.assert_close(both.square().mean(0), both.square().mean().expand(64), rtol=3e-3, atol=0)


@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_weights_are_brought_to_a_size(sides) -> None:
    old = problem(48, 64)
    new = ChannelScales(sides, size=0.7).fit(old, stream(0, "a")).forward(old).weight
    assert abs(float(new.square().mean().sqrt()) - 0.7) < 1e-3


def test_rescale_minimises_trace_times_norm() -> None:
    old = problem(48, 64)
    new = Rescale().fit(old, stream(0, "a")).forward(old)
    rng = stream(1, "jitter")

    def bound(d: torch.Tensor) -> float:
        return float((new.hessian.diagonal() / d**2).sum() * (new.weight * d).square().sum())

    best = bound(torch.ones(64, dtype=torch.float64))
    assert all(best <= bound(1 + 0.1 * torch.rand(64, generator=rng, dtype=torch.float64)) for _ in range(20))


@pytest.mark.parametrize("transform", [*SCALES, EXL3], ids=str)
def test_empty_layers_and_dead_inputs_stay_finite(transform: Transform) -> None:
    weight = torch.randn(16, 32, generator=stream(0, "w"))
    weight[:, 3], weight[5] = 0, 0
    hessian = torch.eye(32, dtype=torch.float64)
    hessian[7, 7] = 0
    for w, h in ((weight, hessian), (0 * weight, 0 * hessian)):
        whole = LayerProblem(w, h)
        new = transform.fit(whole, stream(0, "a")).forward(whole)
        assert bool(torch.isfinite(new.weight).all())
        assert bool(torch.isfinite(new.hessian).all())


def test_exact_costs() -> None:
    assert {name: field.nbytes for name, field in EXL3.fields((256, 512)).items()} == {
        "left_scale": 512,
        "left_signs": 32,
        "right_scale": 1024,
        "right_signs": 64,
    }
    assert RandomKronecker().fields((256, 512))["rotation_seed"].nbytes == 8


def test_one_side_leaves_the_other_alone() -> None:
    fitted = RandomizedHadamard(sides="left").fit(problem(48, 64), stream(0, "a"))
    assert isinstance(fitted.right, Identity)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomizedHadamard(width=4), "width=4"),
        (lambda: RandomizedHadamard(sides="top"), "sides='top'"),  # type: ignore[arg-type]
        (lambda: ChannelScales("both sides"), "sides='both sides'"),  # type: ignore[arg-type]
        (lambda: ChannelScales(size=0.0), "size=0.0"),
        (lambda: ChannelScales("left", size=1e-7).fit(problem(16, 16), stream(0, "a")), "too large for scales"),
        (lambda: RandomizedHadamard(width=128).check((64, 2 * 257)), r"largest divisor of the 514 .* is 2"),
        (lambda: RandomizedHadamard().check((50257, 64)), "cannot mix 50257 .* width=128"),
        (lambda: RandomKronecker().check((64, 2 * 4099)), "nearest factors are 2 and 4099"),
    ],
)
def test_refusals_say_what_to_do(make: object, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make()  # type: ignore[operator]


def test_follows_an_order_in_a_chain() -> None:
    old = problem(48, 64)
    fitted = Chain((ActOrder(), RandomizedHadamard())).fit(old, stream(0, "a"))
    torch.testing.assert_close(fitted.undo(fitted.forward(old).weight), old.weight, rtol=0, atol=1e-12)
