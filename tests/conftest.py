"""What every test shares: the --slow option, one deterministic hypothesis profile, readable failures of the laws."""

import os

# Before anything imports Triton: it then interprets kernels on the CPU.
os.environ["TRITON_INTERPRET"] = "1"

import numba
import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("laws.statements")

# The problems are small: more threads only wait for each other. Tests about threads set their own number.
torch.set_num_threads(1)
numba.set_num_threads(1)

settings.register_profile("lowbit", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("lowbit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
