"""Rounding to nearest: each tile on its own, whatever the Hessian says. The baseline of everything else."""

from dataclasses import dataclass, replace

import torch

from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.records import Rounded
from lowbit.rounding.bounds import nearest_guarantee


@dataclass(frozen=True)
class Nearest:
    """w_hat = nearest storable value of W."""

    def round(self, problem: LayerProblem, code: Code) -> Rounded:
        side = code.fit(problem)
        codes, values = code.encode(problem.weight, side, torch.arange(problem.shape[1]))
        rounded = Rounded(codes, side, values)
        return replace(rounded, guarantee=nearest_guarantee(problem, rounded, code))
