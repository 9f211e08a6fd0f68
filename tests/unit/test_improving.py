"""Rounders that improve another's answer: refitted scales and coordinate descent."""

from dataclasses import dataclass, replace

import pytest
import torch

from laws.problems import correlated, problems
from lowbit.codes import E8P, BitshiftTrellis, IntegerGrid, MidriseGrid, TailBiting
from lowbit.core.errors import BadRequest
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded
from lowbit.rounding import CoordinateDescent, Ldlq, Nearest, RefittedScales

SMALL = BitshiftTrellis(6, 2, tile=(6, 2), values="gaussian")
CODES = {
    "a scale a row": TailBiting(SMALL),
    "a scale for the layer": TailBiting(replace(SMALL, scales="tensor")),
    "half as large": TailBiting(replace(SMALL, loading=2.0)),
    "integers": IntegerGrid(2),
    "midrise": MidriseGrid(2),
    "e8p": E8P(),
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("improved", [RefittedScales, CoordinateDescent])
def test_never_worse_and_usually_better(improved, code):
    """A trellis runs into the order of rounding errors of float32; nothing is worse beyond them."""
    gains = []
    for problem in [*problems(torch.float32).values(), *(correlated(seed, dtype=torch.float32) for seed in range(8))]:
        plain, better = (rounder.round(problem, code) for rounder in (Ldlq(), improved(Ldlq())))
        before, after = problem.loss(plain.w_hat), problem.loss(better.w_hat)
        assert after <= before * (1 + 1e-6)
        gains.append(after < before)
    assert sum(gains) > len(gains) // 2


def test_the_scale_is_the_best_of_all():
    """Against a search over factors, each row on its own; float32 scales are not in the way."""
    code, problem = TailBiting(replace(SMALL, scale_dtype="float32")), correlated(3, dtype=torch.float32)
    rounded = RefittedScales(Ldlq()).round(problem, code)
    for factor in (0.9, 0.99, 0.999, 1.001, 1.01, 1.1):
        for row in range(len(problem.weight)):
            other = rounded.w_hat.clone()
            other[row] *= factor
            assert problem.loss(other) > problem.loss(rounded.w_hat)


def test_scales_are_stored_as_declared():
    """A refitted scale is a float16 number, and codes are those of the rounder inside."""
    problem = correlated(1, dtype=torch.float32)
    plain, refitted = Ldlq().round(problem, CODES["integers"]), RefittedScales(Ldlq()).round(problem, CODES["integers"])
    assert torch.equal(refitted.codes, plain.codes)
    assert not torch.equal(refitted.side["scale"], plain.side["scale"])
    assert torch.equal(refitted.side["scale"], refitted.side["scale"].half().float())
    assert torch.equal(refitted.side["zero"], plain.side["zero"])


@dataclass(frozen=True)
class Opposite:
    """Codes of the weight with its sign turned: no positive scale makes them better."""

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        return Nearest().round(LayerProblem(-problem.weight, problem.hessian), code)


def test_a_scale_that_would_turn_negative_is_kept():
    problem = correlated(2, dtype=torch.float32)
    plain, refitted = (rounder.round(problem, MidriseGrid(3)) for rounder in (Opposite(), RefittedScales(Opposite())))
    assert torch.equal(plain.side["scale"], refitted.side["scale"])
    assert torch.equal(plain.w_hat, refitted.w_hat)


def test_a_fixed_point_of_descent_has_no_better_column():
    """Exhaustively: after enough passes no single code of a row can change for the better."""
    problem = correlated(4, n=3, k=12, dtype=torch.float64)
    code, columns = MidriseGrid(2), torch.arange(12)
    rounded = CoordinateDescent(Ldlq(), passes=100).round(problem, code)
    best = problem.loss(rounded.w_hat)
    for row in range(3):
        for column in range(12):
            for q in range(4):
                codes = rounded.codes.clone()
                codes[row, column] = q
                assert problem.loss(code.decode(codes, rounded.side, columns)) >= best * (1 - 1e-5)


def test_tiles_that_do_not_divide_the_outputs_are_judged_together():
    """Six outputs in tiles of four: w_hat stays what the codes decode to, and the loss does not rise."""
    code, problem = TailBiting(replace(SMALL, tile=(4, 2))), correlated(5, dtype=torch.float32)
    plain, descended = Ldlq().round(problem, code), CoordinateDescent(Ldlq(), passes=3).round(problem, code)
    assert torch.equal(code.decode(descended.codes, descended.side, torch.arange(24)), descended.w_hat)
    assert not torch.equal(descended.codes, plain.codes)
    assert problem.loss(descended.w_hat) < problem.loss(plain.w_hat)


def test_passes_must_be_made():
    with pytest.raises(BadRequest, match="passes=0"):
        CoordinateDescent(Ldlq(), 0)
