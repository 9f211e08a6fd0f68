"""Laws of the codes."""

import pytest
import torch

from laws.problems import problems
from laws.statements import law_encode_is_idempotent, law_encode_is_nearest
from laws.tables import CODES

PROBLEMS = [*problems(torch.float32).values(), *problems(torch.float64).values()]


@pytest.mark.parametrize("law", [law_encode_is_idempotent, law_encode_is_nearest])
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_codes(code, law):
    for problem in PROBLEMS:
        law(code, problem)
