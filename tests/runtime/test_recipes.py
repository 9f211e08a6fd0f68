"""Every recipe as a loaded layer: what it answers, and that one token never waits for the layer to be decoded."""

import pytest
import torch

from laws.problems import problems
from laws.tables import COMBINATIONS, RECIPES
from lowbit.codes import FinerColumns
from lowbit.core.layer import quantize_layer
from lowbit.runtime import QuantizedLinear
from lowbit.runtime import product as product_module

ALL = RECIPES | COMBINATIONS
WITHOUT_KERNEL = (FinerColumns,)
PROBLEM = problems(torch.float32)["outliers"]


@pytest.fixture(params=ALL, scope="module")
def layer(request):
    return quantize_layer(PROBLEM, ALL[request.param], torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_layer_multiplies_by_what_it_dequantizes_to(layer, tokens, dtype):
    linear = QuantizedLinear.from_layer(layer)
    x = torch.randn(tokens, linear.in_features, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    y, exact = linear(x), x.double() @ linear.dequantize().double().T
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() <= max(torch.finfo(dtype).eps, 1e-5) * exact.abs().max()


def test_one_token_meets_neither_decoded_codes_nor_a_dense_correction(layer, monkeypatch):
    linear, x = QuantizedLinear.from_layer(layer), torch.randn(1, PROBLEM.shape[1])
    if isinstance(linear.recipe.code_at(linear.shape), WITHOUT_KERNEL):
        pytest.skip("decoded in slabs")
    exact = linear(x)

    def refuse(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(product_module, "slab_product", refuse)
    monkeypatch.setattr(product_module, "slabs", refuse)
    monkeypatch.setattr(type(linear.recipe.code_at(linear.shape)), "decode", refuse)
    if layer.correction is not None:
        monkeypatch.setattr(type(layer.correction), "dense", refuse)
    assert torch.equal(linear(x), exact)
