"""Tables that are sums of few directions: alternating least squares for what each group takes of them.

    levels of a group = P theta,     P [L, p] patterns,  theta [p] the group's numbers

With the codes held, the best theta is a weighted least-squares problem of p unknowns in which a group's weights only
appear through what each level was given: its total cost and its cost-weighted sum.
"""

import torch
from torch import Tensor

from lowbit.codes.lookup import nearest_codes

# Added to the diagonal of the normal equations, as a part of it: keeps levels that nothing uses where they were.
_RIDGE = 1e-7


def given(groups: Tensor, costs: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What each of `count` levels was given in groups [R, G, g]: cost, and cost times weight, [R, G, L], float64."""
    empty = torch.zeros(*groups.shape[:2], count, dtype=torch.float64)
    costs = costs.double()
    return empty.scatter_add(2, codes, costs), empty.scatter_add(2, codes, costs * groups.double())


def best_theta(mass: Tensor, total: Tensor, patterns: Tensor, before: Tensor) -> Tensor:
    """The best numbers [R, G, p] of each group for what its levels were given [R, G, L]; patterns: [L, p].

    before: [R, G, p], which decides where the codes do not.
    """
    P = patterns.double()
    normal = torch.einsum("lp,rgl,lq->rgpq", P, mass, P)
    ridge = _RIDGE * normal.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).clamp_min(1e-300)
    normal = normal + torch.diag_embed(ridge.expand(*normal.shape[:-1]))
    right = torch.einsum("lp,rgl->rgp", P, total) + ridge * before.double()
    scale = normal.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
    return torch.linalg.solve(normal / scale[..., None], (right / scale)[..., None])[..., 0].to(before.dtype)


def costs_of(groups: Tensor, costs: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [R, G, g] of the nearest levels, and what each group then costs, [R, G]."""
    codes, values = nearest_codes(groups, tables)
    return codes, (costs * (groups - values).square()).sum(-1)
