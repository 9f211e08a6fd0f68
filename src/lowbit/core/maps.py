"""Invertible linear maps of a feature axis, with their structure as tags.

A map acts on the last dimension of a tensor, in that tensor's type. Tags (`is_orthogonal`, `is_diagonal`,
`is_permutation`) let others choose how to fold, store or invert a map without asking for its class.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class LinearMap(Protocol):
    """apply(x [..., d]) -> [..., d]; `inverse()` and `transpose()` are maps again."""

    @property
    def is_orthogonal(self) -> bool: ...
    @property
    def is_diagonal(self) -> bool: ...
    @property
    def is_permutation(self) -> bool: ...

    def apply(self, x: Tensor) -> Tensor: ...
    def inverse(self) -> "LinearMap": ...
    def transpose(self) -> "LinearMap": ...


@dataclass(frozen=True)
class Identity:
    is_orthogonal = is_diagonal = is_permutation = True

    def apply(self, x: Tensor) -> Tensor:
        return x

    def inverse(self) -> "Identity":
        return self

    def transpose(self) -> "Identity":
        return self


@dataclass(frozen=True, eq=False)
class Permutation:
    """y[i] = x[index[i]]. index: [d] int64, each of 0..d-1 once."""

    index: Tensor
    is_orthogonal = is_permutation = True
    is_diagonal = False

    def apply(self, x: Tensor) -> Tensor:
        return x[..., self.index]

    def inverse(self) -> "Permutation":
        return Permutation(torch.argsort(self.index))

    def transpose(self) -> "Permutation":
        return self.inverse()


@dataclass(frozen=True, eq=False)
class Diagonal:
    """y = x * scale. scale: [d], no zeros."""

    scale: Tensor
    is_diagonal = True
    is_orthogonal = is_permutation = False

    def apply(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype)

    def inverse(self) -> "Diagonal":
        return Diagonal(1 / self.scale.double())

    def transpose(self) -> "Diagonal":
        return self


@dataclass(frozen=True, eq=False)
class Dense:
    """y = matrix @ x. matrix: [d, d], invertible; orthogonality is the maker's word, given as a tag."""

    matrix: Tensor
    is_orthogonal: bool = False
    is_diagonal = is_permutation = False

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x.dtype)

    def inverse(self) -> "Dense":
        return Dense(self.matrix.T if self.is_orthogonal else torch.linalg.inv(self.matrix), self.is_orthogonal)

    def transpose(self) -> "Dense":
        return Dense(self.matrix.T, self.is_orthogonal)


@dataclass(frozen=True)
class Product:
    """after(before(x))."""

    after: LinearMap
    before: LinearMap

    @property
    def is_orthogonal(self) -> bool:
        return self.after.is_orthogonal and self.before.is_orthogonal

    @property
    def is_diagonal(self) -> bool:
        return self.after.is_diagonal and self.before.is_diagonal

    @property
    def is_permutation(self) -> bool:
        return self.after.is_permutation and self.before.is_permutation

    def apply(self, x: Tensor) -> Tensor:
        return self.after.apply(self.before.apply(x))

    def inverse(self) -> "Product":
        return Product(self.before.inverse(), self.after.inverse())

    def transpose(self) -> "Product":
        return Product(self.before.transpose(), self.after.transpose())


def keeps_features_apart(map: LinearMap) -> bool:
    """Whether every feature of the outcome is one feature, scaled: orders, scales and products of them."""
    if isinstance(map, Product):
        return keeps_features_apart(map.after) and keeps_features_apart(map.before)
    return map.is_diagonal or map.is_permutation


def compose(after: LinearMap, before: LinearMap) -> LinearMap:
    """The map `after(before(x))`, without carrying identities along."""
    if isinstance(before, Identity):
        return after
    if isinstance(after, Identity):
        return before
    return Product(after, before)
