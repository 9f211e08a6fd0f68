"""Laws of the codes."""

import pytest
import torch

from laws.problems import problems
from laws.statements import (
    law_encode_is_idempotent,
    law_encode_is_nearest,
    law_missing_sensitivity_is_told_first,
)
from laws.tables import CODES, GREEDY

PROBLEMS = [*problems(torch.float32).values(), *problems(torch.float64).values()]


@pytest.mark.parametrize("law", [law_encode_is_idempotent, law_encode_is_nearest])
@pytest.mark.parametrize("name", [name for name in CODES if name not in GREEDY])
def test_codes(name, law):
    for problem in PROBLEMS:
        law(CODES[name], problem)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_a_code_that_needs_gradients_says_so(code):
    law_missing_sensitivity_is_told_first(code, PROBLEMS[0])
