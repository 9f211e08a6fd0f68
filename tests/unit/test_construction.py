"""Parts refuse bad settings when they are made, and bad layers before any work; the message says what to do."""

import math

import pytest
import torch

from laws.problems import correlated
from laws.statements import solve
from laws.toys import Codebook
from lowbit.codes import HessianRange, IntegerGrid, MinMax, SearchedRange
from lowbit.core.errors import BadRequest
from lowbit.core.order import visit
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.core.recipe import Recipe
from lowbit.recipes import make_recipe
from lowbit.rounding import Ldlq, Nearest, Optq
from lowbit.statistics import SecondMoment
from lowbit.transforms import ActOrder, Chain, NoTransform, StaticOrder
from lowbit.transforms.order import by_diagonal

BAD_SETTINGS = [
    (IntegerGrid, {"bits": 0}, "bits=0.*1 to 8"),
    (IntegerGrid, {"bits": 9}, "bits=9.*1 to 8"),
    (IntegerGrid, {"bits": 2.5}, "bits=2.5.*1 to 8"),
    (IntegerGrid, {"bits": "4"}, "bits='4'.*1 to 8"),
    (IntegerGrid, {"group_size": 0}, 'group_size=0.*"row" or "tensor"'),
    (IntegerGrid, {"group_size": "column"}, 'group_size=\'column\'.*"row" or "tensor"'),
    (IntegerGrid, {"scales": "lazy"}, 'scales=.lazy.*"dynamic" or "static"'),
    (IntegerGrid, {"scale_dtype": "float8"}, "scale_dtype=.float8.*float16.*bfloat16.*float32"),
    (SearchedRange, {"smallest": 0}, r"smallest=0.*\(0, 1\].*Use 0.2"),
    (SearchedRange, {"smallest": 1.5}, r"smallest=1.5.*\(0, 1\].*Use 0.2"),
    (SearchedRange, {"steps": 0}, "steps=0.*at least 1.*Use 80"),
    (SearchedRange, {"exponent": 0}, "exponent=0.*above 0.*Use 2.4"),
    (HessianRange, {"smallest": -1}, r"smallest=-1.*\(0, 1\]"),
    (HessianRange, {"damping": -1}, "HessianRange.damping=-1.*Use 0.01"),
    (Ldlq, {"damping": -1}, "Ldlq.damping=-1.*0 to 1000.*Use 0.01"),
    (Ldlq, {"damping": math.nan}, "damping=nan.*Use 0.01"),
    (Ldlq, {"damping": math.inf}, "damping=inf.*Use 0.01"),
    (Ldlq, {"slab": 0}, "slab=0.*at least 1.*Use 128"),
    (Optq, {"damping": -0.5}, "Optq.damping=-0.5.*Use 0.01"),
]


@pytest.mark.parametrize(("part", "settings", "message"), BAD_SETTINGS, ids=str)
def test_bad_settings_are_refused_when_made(part, settings, message):
    with pytest.raises(BadRequest, match=message):
        part(**settings)


def test_bad_recipes_are_refused_when_made():
    with pytest.raises(BadRequest, match=r'refresh=.never.*"input".*"block"'):
        Recipe("mine", SecondMoment(), NoTransform(), IntegerGrid(), Ldlq(), refresh="never")


@pytest.mark.parametrize(
    ("group_size", "k", "offer"),
    [
        (7, 24, "6 or 8"),
        (128, 172, "86 or 172"),
        (32, 31, "1 or 31"),
        (9, 64, "4 or 8"),
    ],
)
def test_a_group_size_that_does_not_divide_names_those_that_do(group_size, k, offer):
    with pytest.raises(BadRequest, match=f"group_size={group_size}.*{k} inputs.*Use {offer}, or"):
        solve(make_recipe("optq", {"group_size": group_size}), correlated(0, k=k))


@pytest.mark.parametrize("range", [MinMax(), SearchedRange()], ids=repr)
def test_scales_that_cannot_be_stored_are_refused(range):
    problem = LayerProblem(correlated(0).weight * 1e6, correlated(0).hessian)
    with pytest.raises(BadRequest, match=r'scale_dtype="float16".*weights up to .*e\+06.*Use "bfloat16"'):
        Ldlq().round(problem, IntegerGrid(4, range=range))
    assert bool(torch.isfinite(Ldlq().round(problem, IntegerGrid(4, scale_dtype="bfloat16")).w_hat).all())


def test_layer_problems_refuse_hessians_of_another_size():
    weight = torch.ones(3, 5)
    with pytest.raises(BadRequest, match=r"must be \[5, 5\], got \[3, 3\]"):
        LayerProblem(weight, torch.eye(3))
    with pytest.raises(BadRequest, match=r"row_hessian must be \[3, 3\]"):
        LayerProblem(weight, torch.eye(5), torch.eye(5))


def test_parts_that_store_the_same_name_are_refused():
    twice = Chain((ActOrder(), ActOrder()))
    with pytest.raises(BadRequest, match="order"):
        twice.fields((6, 24))


def test_nothing_follows_a_visiting_order():
    with pytest.raises(BadRequest, match=r"ActOrder cannot follow a visiting order.*Put the order last"):
        Chain((StaticOrder(), ActOrder())).fit(correlated(0), stream(0, "chain"))


def test_wide_tiles_cannot_be_visited_one_by_one():
    problem = correlated(0)
    with pytest.raises(BadRequest, match=r"tiles of 2 columns.*Use ActOrder"):
        visit(Nearest(), problem, Codebook(), by_diagonal(problem))
