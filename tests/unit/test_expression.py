"""Any parts can be combined without a new recipe: expressions are read, checked and never run."""

import pytest

from lowbit.cli.requests import parse_settings
from lowbit.core.errors import BadRequest
from lowbit.recipes import from_toml, make_recipe, optq, to_toml
from lowbit.rounding import Beam, CoordinateDescent, Ldlq, Nearest
from lowbit.sidecars import LowRank
from lowbit.statistics import CrossMoment
from lowbit.transforms import Chain, RandomizedHadamard, StaticOrder


@pytest.mark.parametrize(
    ("slot", "text", "part"),
    [
        ("rounder", "Nearest", Nearest()),
        ("rounder", "Nearest()", Nearest()),
        ("rounder", "Beam(4)", Beam(4)),
        ("rounder", "Ldlq(damping=0.02)", Ldlq(0.02)),
        ("rounder", "CoordinateDescent(rounder, passes=2)", CoordinateDescent(Ldlq(), 2)),
        ("rounder", "CoordinateDescent(CoordinateDescent(Nearest, 3), 2)", None),
        ("statistic", "CrossMoment(1e-4)", CrossMoment(1e-4)),
        ("transform", "Chain((RandomizedHadamard(sides='right'), StaticOrder))", None),
        ("side_car", "LowRank(2)", LowRank(2)),
        ("side_car", "None", None),
    ],
)
def test_a_part_is_what_was_written(slot, text, part):
    written = {
        "CoordinateDescent(CoordinateDescent(Nearest, 3), 2)": CoordinateDescent(CoordinateDescent(Nearest(), 3), 2),
        "Chain((RandomizedHadamard(sides='right'), StaticOrder))": Chain(
            (RandomizedHadamard(sides="right"), StaticOrder())
        ),
    }
    recipe = make_recipe("optq", {"bits": 3, slot: text})
    assert getattr(recipe, slot) == written.get(text, part)
    assert recipe.code == optq(bits=3).code
    assert recipe.name.startswith("optq with ")
    assert from_toml(to_toml(recipe)) == recipe


def test_settings_keep_their_commas_inside_brackets():
    settings = parse_settings(["bits=3,rounder=CoordinateDescent(Ldlq(0.02), passes=2),group_size=64"])
    assert settings == {"bits": 3, "rounder": "CoordinateDescent(Ldlq(0.02), passes=2)", "group_size": 64}
    assert make_recipe("optq", settings).rounder == CoordinateDescent(Ldlq(0.02), 2)


@pytest.mark.parametrize(
    ("slot", "text", "said"),
    [
        ("rounder", "Bean(4)", "no part named 'Bean'. Did you mean Beam"),
        ("rounder", "Beam(", "cannot be read"),
        ("rounder", "StaticOrder", "must be a part that is a Rounder"),
        ("rounder", "Ldlq(-1)", "damping=-1"),
        ("rounder", "Ldlq('much')", "damping"),
        ("rounder", "Ldlq(0.1, 2, 3, 4, 5)", "takes damping"),
        ("rounder", "Ldlq(0.1, damping=2)", "each once"),
        ("rounder", "Ldlq(dumping=2)", "unknown field 'dumping'"),
        ("rounder", "__import__('os').system('true')", "is no part"),
        ("rounder", "[Nearest for _ in (1,)]", "is no part"),
        ("rounder", "Ldlq(**{})", "is no part"),
        ("code", "None", "code"),
    ],
)
def test_what_cannot_be_is_refused_by_name(slot, text, said):
    with pytest.raises(BadRequest, match=said):
        make_recipe("optq", {slot: text})
