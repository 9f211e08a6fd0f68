"""Malformed side-cars in a checkpoint are refused by name: indices out of range, counts that do not add up."""

from functools import cache

import pytest
import torch

from laws.problems import correlated
from laws.statements import solve
from lowbit.core.errors import BadRequest
from lowbit.core.fields import Bits
from lowbit.formats import check_checkpoint, quantization_config, stored_tensors, write_json_atomically
from lowbit.formats import write_tensors_atomically as write_tensors
from lowbit.packing import pack
from lowbit.recipes import from_dict, make_recipe, to_dict

LAYER, SHAPE = "model.layer", (6, 24)
RECIPES = {
    "owq": make_recipe("owq", {"extra_bits": 2.6}),
    "easyquant": make_recipe("easyquant", {"fraction": 0.03}),
    "lorc": make_recipe("lorc", {"rank": 2}),
    "lorc in float16": make_recipe("lorc", {"rank": 2, "dtype": "float16"}),
}


@cache
def tensors(name):
    return {f"{LAYER}.{key}": value for key, value in stored_tensors(solve(RECIPES[name], correlated(0))).items()}


def write(folder, name, changed):
    config = quantization_config({LAYER: (to_dict(RECIPES[name]), SHAPE)}, "0.1.0")
    write_json_atomically(folder / "config.json", {"quantization_config": config})
    write_tensors(folder / "model.safetensors", tensors(name) | changed, {})


def indices(*values, bits=5):
    return pack(torch.tensor(values), Bits((len(values),), bits))


ATTACKS = {
    "kept column beyond the layer": ("owq", "kept_index", indices(1, 5, 24), "kept_index does not name 3 of 24"),
    "kept column twice": ("owq", "kept_index", indices(1, 5, 5), "kept_index does not name"),
    "kept columns out of order": ("owq", "kept_index", indices(5, 1, 7), "kept_index does not name"),
    "NaN in a kept column": ("owq", "kept_weight", torch.full((6, 3), torch.nan).half(), "kept_weight holds NaN"),
    "one kept column fewer": ("owq", "kept_weight", torch.zeros(6, 2).half(), r"kept_weight is torch.float16 \[6, 2\]"),
    "too many outliers counted": ("easyquant", "outlier_count", indices(4, 0, 0, 0, 0, 1), "counts 5 entries, but 4"),
    "too few outliers counted": ("easyquant", "outlier_count", indices(0, 0, 0, 0, 0, 0), "counts 0 entries, but 4"),
    "outlier beyond the layer": ("easyquant", "outlier_index", indices(24, 0, 1, 2), "outlier_index does not name"),
    "infinite outlier": (
        "easyquant",
        "outlier_value",
        torch.full((4,), torch.inf).half(),
        "outlier_value holds NaN",
    ),
    "factors of another rank": ("lorc", "low_rank_left", torch.ones(6, 3).to(torch.int8), "low_rank_left is"),
    "zero scale of a factor": ("lorc", "low_rank_right_scale", torch.zeros(2).half(), "scale that is not positive"),
    "NaN in a factor": ("lorc in float16", "low_rank_right", torch.full((2, 24), torch.nan).half(), "holds NaN"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_what_was_written_is_legal(name, tmp_path):
    write(tmp_path, name, {})
    check_checkpoint(tmp_path, from_dict)


@pytest.mark.parametrize(("name", "field", "value", "message"), ATTACKS.values(), ids=ATTACKS)
def test_malformed_side_cars_are_refused(name, field, value, message, tmp_path):
    write(tmp_path, name, {f"{LAYER}.{field}": value})
    with pytest.raises(BadRequest, match=message):
        check_checkpoint(tmp_path, from_dict)


def test_outliers_of_a_row_twice_or_out_of_order(tmp_path):
    for columns in ((3, 3, 0, 1), (4, 3, 0, 1)):
        damaged = {"outlier_count": indices(2, 2, 0, 0, 0, 0), "outlier_index": indices(*columns)}
        write(tmp_path, "easyquant", {f"{LAYER}.{field}": value for field, value in damaged.items()})
        with pytest.raises(BadRequest, match=r"outlier_index does not name each row's columns, of 24"):
            check_checkpoint(tmp_path, from_dict)
