"""Gradients through a layer that stays packed: right, and bought without keeping its values."""

import pytest
import torch

from lowbit.core.layer import quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.recipes import lorc, optq, trellis
from lowbit.runtime import QuantizedLinear

N, K = 48, 64
RECIPES = {
    "groups": optq(bits=3, group_size=16, act_order=True),
    "trellis": trellis(bits=2, L=8),
    "something beside the codes": lorc(bits=3, rank=2),
}


@pytest.fixture(scope="module", params=sorted(RECIPES))
def layer(request):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(N, K, generator=generator), torch.randn(200, K, generator=generator)
    return quantize_layer(LayerProblem(weight, (x.T @ x).double() / len(x)), RECIPES[request.param], generator)


def gradients(layer, dtype, tokens):
    """Of a weighted sum of outputs: through the packed layer, and as the dequantized weight has it."""
    x = torch.randn(tokens, K, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    weights = torch.randn(tokens, N, generator=torch.Generator().manual_seed(2))
    (QuantizedLinear.from_layer(layer)(x).float() * weights).sum().backward()
    return x.grad, weights @ layer.dequantize()


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_have_the_gradient_of_the_dense_layer(layer, dtype, tokens):
    found, exact = gradients(layer, dtype, tokens)
    assert found.dtype == dtype
    tolerance = 2 * max(torch.finfo(dtype).eps, 1e-5)
    assert (found.float() - exact).abs().max() <= tolerance * exact.abs().max()


def test_nothing_of_the_size_of_the_weight_waits_for_the_way_back(layer):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        QuantizedLinear.from_layer(layer)(torch.randn(2, K, requires_grad=True)).sum()
    assert all(tensor.numel() < N * K for tensor in kept)


def test_a_compiled_model_breaks_its_graph_here_and_computes_the_same(layer):
    linear, x = QuantizedLinear.from_layer(layer), torch.randn(3, K)
    compiled = torch.compile(torch.nn.Sequential(linear, torch.nn.ReLU()), backend="eager")
    assert torch.equal(compiled(x), linear(x).relu())
