"""Layer problems the laws are tried on: [6, 24], small enough for thousands of solves, each with a character."""

from dataclasses import replace

import torch
from torch import Tensor

from lowbit.core.parts import Observed
from lowbit.core.problem import LayerProblem

N, K = 6, 24
WINDOWS, TOKENS = 10, 5


def correlated_inputs(tokens: int, k: int, generator: torch.Generator) -> Tensor:
    """Tokens x [T, k], float64: neighbouring inputs correlate at 0.9 and their sizes differ up to a hundredfold."""
    lag = (torch.arange(k)[:, None] - torch.arange(k)).abs()
    mixing = torch.linalg.cholesky(0.9 ** lag.double())
    sizes = torch.logspace(-1, 1, k, dtype=torch.float64)[torch.randperm(k, generator=generator)]
    return torch.randn(tokens, k, generator=generator, dtype=torch.float64) @ mixing.T * sizes


def correlated(
    seed: int, n: int = N, k: int = K, tokens: int = 200, dtype: torch.dtype = torch.float64
) -> LayerProblem:
    """A Gaussian weight, the second moment of correlated inputs, and sensitivities over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    x = correlated_inputs(tokens, k, generator)
    weight = torch.randn(n, k, generator=generator, dtype=torch.float64).to(dtype)
    sensitivity = torch.randn(n, k, generator=generator, dtype=torch.float64).exp().square()
    return LayerProblem(weight, x.T @ x / tokens, None, sensitivity)


def problems(dtype: torch.dtype) -> dict[str, LayerProblem]:
    """Every character once, with weights of `dtype`."""
    usual = correlated(0, dtype=dtype)
    dead = usual.hessian.clone()
    dead[[3, 17]], dead[:, [3, 17]] = 0, 0
    outlier = usual.weight.clone()
    outlier[1, 5], outlier[4, 20] = 40.0, -25.0
    rows = torch.randn(N, 3 * N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    insensitive = usual.sensitivity.clone()
    insensitive[2], insensitive[3, ::2] = 0, 0
    return {
        "usual": usual,
        "fewer tokens than inputs": correlated(2, tokens=K // 3, dtype=dtype),
        "dead inputs": replace(usual, hessian=dead),
        "no signal": replace(usual, hessian=torch.zeros(K, K, dtype=torch.float64)),
        "outliers": replace(usual, weight=outlier),
        "one sign": replace(usual, weight=usual.weight.abs() + 1),
        "zero weight": replace(usual, weight=torch.zeros_like(usual.weight)),
        "small weight": replace(usual, weight=usual.weight / 64),
        "row hessian": replace(usual, row_hessian=rows @ rows.T / N),
        "float32 hessian": replace(usual, hessian=usual.hessian.float()),
        "weights that do not matter": replace(usual, sensitivity=insensitive),
    }


def observed_windows(dtype: torch.dtype, k: int = 12, n: int = N) -> list[Observed]:
    """One record a window, with everything that can be observed of a layer [n, k] in attention of two heads."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    records: list[Observed] = []
    for _ in range(WINDOWS):
        x = correlated_inputs(TOKENS, k, generator)
        attention = draw(1, 2, TOKENS, TOKENS).tril().exp().tril()
        attention /= attention.sum(-1, keepdim=True)
        heads, a = draw(2, 7, n // 2), attention.flatten(1, 2)
        record: Observed = {
            "inputs": x + 0.1 * draw(TOKENS, k),
            "float_inputs": x,
            "places": torch.stack([torch.zeros(TOKENS, dtype=torch.int64), torch.arange(TOKENS)], 1),
            "token_counts": torch.randint(1, 9, (1, TOKENS), generator=generator),
            "attention": attention,
            "mixing": a.mT @ a / 2,
            "output_curvature": heads.mT @ heads,
            "output_gradients": draw(TOKENS, n),
            "weight_gradients": draw(1, n, k),
        }
        exact = ("places", "token_counts", "output_curvature")
        records.append({name: seen if name in exact else seen.to(dtype) for name, seen in record.items()})
    return records


def together(records: list[Observed]) -> Observed:
    """The record of all windows at once."""
    joined = {name: torch.cat([record[name] for record in records]) for name in records[0]}
    joined["places"][:, 0] = torch.arange(len(records)).repeat_interleave(TOKENS)
    joined["output_curvature"] = torch.stack([record["output_curvature"] for record in records]).sum(0)
    return joined
