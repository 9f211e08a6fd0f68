"""Laws of the rounders with every code they go with, and of the side-cars."""

import pytest
import torch

from laws.problems import correlated, problems
from laws.statements import (
    law_codes_decode_to_w_hat,
    law_feedback_pays,
    law_identity_hessian_means_nearest,
    law_side_car_pays,
)
from laws.tables import (
    CODES,
    COLUMN_BY_COLUMN,
    FEWER_PAIRS,
    NOT_NEAREST,
    PAIRS,
    ROUNDERS,
    SIDE_CARS,
    has_one_scale,
)
from lowbit.core.errors import BadRequest
from lowbit.rounding import Ldlq, Nearest, RefittedScales

NEAREST_PAIRS = {name: pair for name, pair in FEWER_PAIRS.items() if name.partition(" | ")[0] not in NOT_NEAREST}

RUNS_AWAY = ("symmetric groups",)
"""One bit in dynamic groups with min-max ranges: the range of each group grows with the errors it is to absorb."""

FLOAT32, FLOAT64 = problems(torch.float32), problems(torch.float64)


@pytest.mark.parametrize(("rounder", "code"), PAIRS.values(), ids=PAIRS)
def test_codes_decode_to_w_hat(rounder, code):
    law_codes_decode_to_w_hat(rounder, code, FLOAT32["usual"])


@pytest.mark.parametrize(
    ("rounder", "code"),
    [
        pytest.param(*pair, id=name, marks=() if name in FEWER_PAIRS else pytest.mark.slow)
        for name, pair in PAIRS.items()
    ],
)
def test_codes_decode_to_w_hat_for_problems_of_every_character(rounder, code):
    for name in FLOAT32.keys() - {"no signal"}:
        law_codes_decode_to_w_hat(rounder, code, FLOAT32[name])
        law_codes_decode_to_w_hat(rounder, code, FLOAT64[name])


@pytest.mark.parametrize(("rounder", "code"), NEAREST_PAIRS.values(), ids=NEAREST_PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_identity_hessian_means_nearest(rounder, code, dtype):
    law_identity_hessian_means_nearest(rounder, Nearest(), code, correlated(5, dtype=dtype).weight)


@pytest.mark.parametrize("name", [name for name in CODES if name not in RUNS_AWAY])
def test_feedback_pays(name):
    law_feedback_pays(Ldlq(), Nearest(), CODES[name], [correlated(seed) for seed in range(12)])


@pytest.mark.parametrize("code", [code for code in CODES.values() if code.tile != (1, 1)], ids=str)
@pytest.mark.parametrize("rounder", COLUMN_BY_COLUMN)
def test_column_by_column_rounders_refuse_wider_tiles(rounder, code):
    with pytest.raises(BadRequest, match="Use Ldlq"):
        ROUNDERS[rounder].round(correlated(0), code)


@pytest.mark.parametrize("code", [code for code in CODES.values() if not has_one_scale(code)], ids=str)
def test_scales_shared_by_columns_are_not_refitted(code):
    with pytest.raises(BadRequest, match="one scale for the layer or one a row"):
        RefittedScales(Ldlq()).round(correlated(0), code)


@pytest.mark.parametrize("side_car", SIDE_CARS.values(), ids=SIDE_CARS)
@pytest.mark.parametrize("name", FLOAT32)
def test_side_cars_pay(side_car, name):
    problem = FLOAT32[name]
    if problem.row_hessian is None:
        law_side_car_pays(side_car, Nearest(), CODES["2 bits"], problem)
