"""Hadamard matrices by construction: Q of -1 and +1 with Q Q^T = n I.

    order 2 n          Sylvester:  Q -> [[Q, Q], [Q, -Q]]
    order q + 1        Paley I,    q = 3 mod 4 a prime power
    order 2 (q + 1)    Paley II,   q = 1 mod 4 a prime power
    order 4 n          Williamson, four symmetric circulants of order n; n = 23, 29, 43 from `williamson.npz`, which
                       `tools/find_williamson.py` wrote

Both of Paley's are built from the quadratic characters of GF(q), the differences of whose elements are squares or not.
Together they give every multiple of 4 up to 256 but 156, 188 and 236. Those exist too, but take a search beyond the
symmetric circulants; `lowbit.transforms.hadamard` says what stands in for them.

Sources: Paley, On orthogonal matrices, 1933; Williamson, Hadamard's determinant theorem, 1944.
Cost: n^2 bytes; a few milliseconds for n = 1024.
"""

import functools
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowbit.core.errors import BadRequest


class Construction(NamedTuple):
    """How the matrix of an order is built. argument: q for Paley's, n for the others."""

    name: str
    argument: int


def construction(order: int) -> Construction | None:
    """The construction of `order`, or None where none is known here."""
    if order in (1, 2):
        return Construction("sylvester", order // 2)
    if order < 1 or order % 4:
        return None
    if order & (order - 1) == 0:
        return Construction("sylvester", order // 2)
    if _prime_power(order - 1):
        return Construction("paley I", order - 1)
    if (order // 2 - 1) % 4 == 1 and _prime_power(order // 2 - 1):
        return Construction("paley II", order // 2 - 1)
    if str(order // 4) in _williamson_rows():
        return Construction("williamson", order // 4)
    if construction(order // 2) is not None:
        return Construction("sylvester", order // 2)
    return None


@functools.lru_cache(maxsize=16)
def hadamard_matrix(order: int) -> Tensor:
    """The Hadamard matrix of `order` as int8 [order, order] of -1 and +1; do not write to it.

    Symmetric where the order is a power of two. Raises BadRequest where no construction is known.
    """
    found = construction(order)
    if found is None:
        near = [n for n in range(max(1, order - 16), order + 17) if construction(n)]
        raise BadRequest(f"hadamard_matrix({order}): no construction known. Near orders that have one: {near}.")
    match found.name:
        case "paley I":
            matrix = _paley_one(found.argument)
        case "paley II":
            matrix = _paley_two(found.argument)
        case "williamson":
            matrix = _williamson(_williamson_rows()[str(found.argument)])
        case _:
            matrix = np.ones((1, 1), np.int8) if order == 1 else _doubled(hadamard_matrix(order // 2).numpy())
    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.int8))


def _doubled(half: np.ndarray) -> np.ndarray:
    return np.block([[half, half], [half, -half]])


def _paley_one(q: int) -> np.ndarray:
    skew = np.zeros((q + 1, q + 1), np.int8)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = _jacobsthal(q)
    return np.eye(q + 1, dtype=np.int8) + skew


def _paley_two(q: int) -> np.ndarray:
    conference = np.zeros((q + 1, q + 1), np.int8)
    conference[0, 1:], conference[1:, 0] = 1, 1
    conference[1:, 1:] = _jacobsthal(q)
    on, off = np.array([[1, -1], [-1, -1]], np.int8), np.array([[1, 1], [1, -1]], np.int8)
    return np.kron(conference, off) + np.kron(np.eye(q + 1, dtype=np.int8), on)


def _williamson(rows: np.ndarray) -> np.ndarray:
    """From the first rows, [4, n], of four symmetric circulants whose squares sum to 4 n I."""
    n = rows.shape[1]
    a, b, c, d = (row[(np.arange(n) - np.arange(n)[:, None]) % n] for row in rows)
    return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])


@functools.cache
def _williamson_rows() -> dict[str, np.ndarray]:
    with resources.as_file(resources.files("lowbit.core") / "williamson.npz") as path, np.load(path) as stored:
        return dict(stored)


def _jacobsthal(q: int) -> np.ndarray:
    """[q, q]: the quadratic character (0, or 1 for squares, else -1) of the difference of two elements of GF(q).

    Elements are numbers below q, their base-p digits being the coefficients of a polynomial.
    """
    p, degree = _prime_power_parts(q)
    place = p ** np.arange(degree)
    digits = np.arange(q)[:, None] // place % p
    difference = ((digits[:, None, :] - digits[None, :, :]) % p) @ place
    character = np.full(q, -1, np.int8)
    character[_squares(p, degree) @ place] = 1
    character[0] = 0
    return character[difference]


def _squares(p: int, degree: int) -> np.ndarray:
    """The non-zero squares of GF(p^degree) as digits, [(q - 1) / 2, degree]: the even powers of a generator x.

    x is a root of x^degree = sum reduction_i x^i; reductions are tried until the powers of x run through the field.
    For degree 1 that is the search for a primitive root.
    """
    q = p**degree
    for number in range(1, q):
        reduction = [number // p**i % p for i in range(degree)]
        one = [1] + [0] * (degree - 1)
        powers = [one]
        while len(powers) < q:
            low, top = [0, *powers[-1][:-1]], powers[-1][-1]
            following = [(a + top * r) % p for a, r in zip(low, reduction, strict=True)]
            if following == one or not any(following):
                break
            powers.append(following)
        if len(powers) == q - 1:
            return np.array(powers[::2])
    raise AssertionError(f"GF({q}) has a generator")


def _prime_power(q: int) -> bool:
    return q > 2 and _prime_power_parts(q)[0] > 0


@functools.cache
def _prime_power_parts(q: int) -> tuple[int, int]:
    """(p, degree) with q = p^degree, or (0, 0)."""
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    degree = 0
    while q % p == 0:
        q, degree = q // p, degree + 1
    return (p, degree) if q == 1 else (0, 0)
