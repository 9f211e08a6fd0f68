"""OPTQ as published, kept as the reading of the paper and the oracle of `Ldlq`, which equals it code for code.

    U^T U = (H + damping * mean(diag H) * I)^-1,    U upper triangular
    for each column j:  q = Q(W_j);  e = (W_j - q) / U_jj;  W_{j+1..} -= e U_{j, j+1..}

Paper: Frantar et al., OPTQ (GPTQ), arXiv 2210.17323, algorithm 1 without lazy batches. Differs from the repository:
weights of inputs that never fire are rounded to nearest, not set to zero. Cost: K^3 + N K^2 / 2 multiply-adds.
"""

from dataclasses import dataclass, replace

import torch

from lowbit.core.errors import require
from lowbit.core.linalg import Factor, check_damping
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded
from lowbit.rounding.bounds import feedback_guarantee
from lowbit.rounding.rows import rows_apart


@dataclass(frozen=True)
class Optq:
    """damping: 0 to 1000, a fraction of the mean diagonal of H. Codes with tile (1, 1) only; use Ldlq for others."""

    damping: float = 0.01

    def __post_init__(self) -> None:
        check_damping(self, self.damping)

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        require(
            code.tile == (1, 1), f"Optq needs a code with tile (1, 1), {type(code).__name__} has {code.tile}. Use Ldlq."
        )
        W, H, K = problem.weight.clone(), problem.hessian.double().clone(), problem.shape[1]
        H.diagonal().add_(self.damping * H.diagonal().mean())
        inverse, _ = torch.linalg.inv_ex(H)
        U, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        require(
            int(failed) == 0, f"Optq(damping={self.damping}): H is not positive definite. Use Ldlq, which damps more."
        )
        U = U.to(W.dtype)
        side, codes, w_hat = code.fit(problem), [], torch.empty_like(W)
        for j in range(K):
            if code.refit_every and j % code.refit_every == 0:
                group = torch.arange(j, j + code.refit_every)
                side = code.refit(side, W[:, group], group)
            q, w_hat[:, [j]] = code.encode(W[:, [j]], side, torch.tensor([j]))
            W[:, j + 1 :] -= ((W[:, j] - w_hat[:, j]) / U[j, j])[:, None] * U[j, j + 1 :]
            codes.append(q)
        unit = U.double() / U.double().diagonal()[:, None]
        factor = Factor(torch.linalg.inv(unit), U.double().diagonal() ** -2, self.damping, ())
        rounded = Rounded(torch.cat(codes, 1), side, w_hat, rows_apart(self, problem))
        return replace(rounded, guarantee=feedback_guarantee(problem, rounded, code, factor))
