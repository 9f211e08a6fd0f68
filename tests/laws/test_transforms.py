"""Laws of the linear maps and the transforms made of them."""

import pytest
import torch

from laws.problems import problems
from laws.statements import (
    law_map_is_linear,
    law_transform_preserves_function,
    law_transform_preserves_loss,
    law_transform_restores,
)
from laws.tables import MAPS, TRANSFORMS

PROBLEMS = [*problems(torch.float32).values(), *problems(torch.float64).values()]


@pytest.mark.parametrize("map", MAPS.values(), ids=MAPS)
def test_maps(map):
    law_map_is_linear(map, 8)


@pytest.mark.parametrize(
    "law", [law_transform_preserves_function, law_transform_preserves_loss, law_transform_restores]
)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms(transform, law):
    for problem in PROBLEMS:
        law(transform, problem)
