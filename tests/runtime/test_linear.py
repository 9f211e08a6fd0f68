"""QuantizedLinear against the dense layer of its dequantized weight."""

import copy

import pytest
import torch

from lowbit.codes import IntegerGrid
from lowbit.core.layer import quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.formats.checkpoint import stored_tensors
from lowbit.recipes import optq, rtn
from lowbit.runtime import QuantizedLinear
from lowbit.runtime import product as product_module
from lowbit.runtime.integer import FEW_TOKENS
from lowbit.runtime.product import StoredCodes, decode_rows, slab_product

N, K = 30, 44
RECIPES = {
    "rtn": rtn(bits=4),
    "tensor": rtn(bits=8, group_size="tensor"),
    "groups": optq(bits=3, group_size=11),
    "act-order": optq(bits=2, group_size=22, act_order=True, symmetric=True),
}


@pytest.fixture(params=sorted(RECIPES))
def layer(request):
    return solved(RECIPES[request.param])


def solved(recipe, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(N, K, generator=generator), torch.randn(200, K, generator=generator)
    return quantize_layer(LayerProblem(weight, (x.T @ x).double() / len(x)), recipe, generator)


def empty_like(layer, bias_dtype=None):
    return QuantizedLinear(layer.recipe, layer.shape, bias_dtype)


@pytest.mark.parametrize("tokens", [(), (1,), (2, 3), (FEW_TOKENS + 1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_the_dense_layer_of_the_dequantized_weight(layer, tokens, dtype):
    bias = torch.linspace(-1, 1, N)
    linear, x = QuantizedLinear.from_layer(layer, bias), torch.randn(*tokens, K, dtype=dtype)
    exact = torch.nn.functional.linear(x.double(), layer.dequantize().double(), bias.double())
    y = linear(x)
    assert y.dtype == dtype
    assert y.shape == (*tokens, N)
    tolerance = max(torch.finfo(dtype).eps, 1e-5)
    assert (y.double() - exact).abs().max() <= tolerance * exact.abs().max()


def test_the_weight_comes_back_bit_for_bit(layer):
    assert torch.equal(QuantizedLinear.from_layer(layer).dequantize(), layer.dequantize())


def test_the_state_dict_is_what_is_stored(layer):
    linear = QuantizedLinear.from_layer(layer)
    state = linear.state_dict()
    stored = stored_tensors(layer)
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) and state[name].dtype == stored[name].dtype for name in stored)
    fresh = empty_like(layer)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.dequantize(), layer.dequantize())


@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])
def test_casting_touches_only_the_bias(layer, cast):
    linear = QuantizedLinear.from_layer(layer, torch.zeros(N))
    before = {name: tensor.clone() for name, tensor in linear.named_buffers()}
    cast(linear)
    assert linear.bias.dtype != torch.float32
    assert all(
        tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
        for name, tensor in linear.named_buffers()
    )


def test_moving_to_meta_and_back_to_empty_keeps_types_and_shapes(layer):
    linear = QuantizedLinear.from_layer(layer).to("meta").to_empty(device="cpu")
    stored = stored_tensors(layer)
    assert {n: (t.dtype, t.shape) for n, t in linear.named_buffers()} == {
        n: (t.dtype, t.shape) for n, t in stored.items()
    }


def test_loading_other_tensors_after_a_forward_pass_takes_effect():
    first, second = solved(RECIPES["act-order"], 1), solved(RECIPES["act-order"], 2)
    linear, x = QuantizedLinear.from_layer(first), torch.randn(1, K, generator=torch.Generator().manual_seed(3))
    linear(x)
    twin = copy.deepcopy(linear)
    twin.load_state_dict(stored_tensors(second))
    torch.testing.assert_close(twin(x), x @ second.dequantize().T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear(x), x @ first.dequantize().T, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_input(layer):
    linear, x = QuantizedLinear.from_layer(layer), torch.randn(2, K, requires_grad=True)
    linear(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize().sum(0).expand(2, K), rtol=1e-4, atol=1e-4)


def test_a_code_that_registers_nothing_is_decoded_in_slabs(monkeypatch):
    """What a new code gets for nothing agrees with the integer grid's own way, whatever the height of the slabs."""
    layer, x = solved(RECIPES["groups"]), torch.randn(3, K)
    linear = QuantizedLinear.from_layer(layer)
    code, stored = layer.recipe.code, linear._codes()
    anonymous = StoredCodes(stored.shape, stored.tensors)
    for start, stop in [(0, N), (4, 9), (N - 1, N)]:
        generic = decode_rows.dispatch(object)(code, anonymous, start, stop)
        assert torch.equal(generic, layer.dequantize()[start:stop])
    for rows in (1, 7, 1000):
        monkeypatch.setattr(product_module, "SLAB_BYTES", 4 * K * rows)
        torch.testing.assert_close(slab_product(code, anonymous, x), x @ layer.dequantize().T)


def test_a_shape_that_the_recipe_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="group_size=11"):
        QuantizedLinear(RECIPES["groups"], (N, 40))
    assert isinstance(RECIPES["groups"].code, IntegerGrid)
