"""Hadamard matrices: every order that is claimed satisfies the definition, and the orders not claimed are known."""

import pytest
import torch

from lowbit.core.errors import BadRequest
from lowbit.core.hadamard import construction, hadamard_matrix

UNAVAILABLE = [156, 188, 236]


@pytest.mark.parametrize("order", [1, 2, *(n for n in range(4, 257, 4) if n not in UNAVAILABLE)])
def test_rows_are_orthogonal(order: int) -> None:
    q = hadamard_matrix(order)
    assert q.dtype == torch.int8
    assert torch.equal(q.abs(), torch.ones_like(q))
    assert torch.equal(q.double() @ q.double().T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize(
    ("order", "name"),
    [(28, "paley I"), (36, "paley II"), (244, "paley I"), (100, "paley II"), (172, "williamson"), (232, "sylvester")],
)
def test_prime_powers_and_doublings_are_found(order: int, name: str) -> None:
    found = construction(order)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("order", [924, 1024])
def test_large_orders(order: int) -> None:
    q = hadamard_matrix(order).float()  # sums of up to 1024 ones are exact
    assert torch.equal(q @ q.T, order * torch.eye(order))


@pytest.mark.parametrize("order", [0, -4, 3, 6, *UNAVAILABLE])
def test_other_orders_are_refused_by_name(order: int) -> None:
    assert construction(order) is None
    with pytest.raises(BadRequest, match=f"hadamard_matrix\\({order}\\)"):
        hadamard_matrix(order)


def test_powers_of_two_are_symmetric() -> None:
    assert torch.equal(hadamard_matrix(64), hadamard_matrix(64).T)
