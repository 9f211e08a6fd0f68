"""A linear layer that is its stored tensors: what is in memory is what is in the file.

    y = L^-1 W' (R x) + correction + bias

The buffers carry the checkpoint's names, types and packing, so a state dict is the checkpoint and loading copies
bytes. Casting a model to another type leaves them as they are: only activations and the bias have the model's type.
Arithmetic is float32 on the CPU, elsewhere the activations' type except in the transforms.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.layer import QuantizedLayer
from lowbit.core.maps import LinearMap
from lowbit.core.parts import Correction
from lowbit.core.recipe import Recipe
from lowbit.formats.checkpoint import restored, restored_layer, stored_fields, stored_layout, stored_tensors
from lowbit.runtime.frozen import frozen_product
from lowbit.runtime.product import StoredCodes


class QuantizedLinear(nn.Module):
    """A layer [N, K] quantized by `recipe`, its buffers empty until they are loaded.

    bias_dtype: None for a layer without bias. Raises BadRequest where the recipe cannot hold the shape.
    """

    def __init__(self, recipe: Recipe, shape: tuple[int, int], bias_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        recipe.check(shape)
        self.recipe, self.out_features, self.in_features = recipe, shape[0], shape[1]
        for name, (dtype, stored_shape) in stored_layout(recipe, shape).items():
            self.register_buffer(name, torch.empty(stored_shape, dtype=dtype))
        self.bias = None
        if bias_dtype is not None:
            self.bias = nn.Parameter(torch.empty(shape[0], dtype=bias_dtype), requires_grad=False)

    @classmethod
    def from_layer(cls, layer: QuantizedLayer, bias: Tensor | None = None) -> "QuantizedLinear":
        """The module of a solved layer; bias: [N]."""
        with torch.device("meta"):
            linear = cls(layer.recipe, layer.shape)
        for name, tensor in stored_tensors(layer).items():
            linear.register_buffer(name, tensor)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return linear

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def dequantize(self) -> Tensor:
        """The weight [N, K] that the stored tensors stand for, float32, on their device."""
        layer = restored_layer(self.recipe, self.shape, {name: tensor.cpu() for name, tensor in self._stored().items()})
        return layer.dequantize().to(self._stored()["weight"].device)

    @torch.compiler.disable  # numba's kernels and those of Triton are launched by hand; around them graphs break
    def forward(self, x: Tensor) -> Tensor:
        """x [..., K], floating point, to [..., N] in x's type; differentiable by x."""
        right, left_inverse = self._maps
        tokens = right.apply(x.reshape(-1, self.in_features).float())
        working = torch.float32 if x.is_cpu else x.dtype
        code = self.recipe.code_at(self.shape)
        y = left_inverse.apply(frozen_product(code, self._codes(), tokens.to(working)).float())
        if self._correction is not None:
            y = y + self._correction.apply(x.reshape(-1, self.in_features).float())
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, recipe={self.recipe.name}"

    @cached_property
    def _maps(self) -> tuple[LinearMap, LinearMap]:
        """R and L^-1; forgotten whenever the buffers change."""
        transform = self.recipe.transform
        fitted = transform.restore(self._restored(transform.fields(self.shape)), self.shape)
        return fitted.right, fitted.left.inverse()

    @cached_property
    def _correction(self) -> Correction | None:
        """What is added to the product; forgotten whenever the buffers change."""
        side_car = self.recipe.side_car
        return None if side_car is None else side_car.restore(self._restored(side_car.fields(self.shape)), self.shape)

    def _codes(self) -> StoredCodes:
        buffers = self._stored()
        names = self.recipe.code_at(self.shape).fields(self.shape)
        return StoredCodes(self.shape, {name: buffers["weight" if name == "codes" else name] for name in names})

    def _restored(self, names: Mapping[str, Any]) -> dict[str, Tensor]:
        buffers, fields = self._stored(), stored_fields(self.recipe, self.shape)
        device = buffers["weight"].device
        return {name: restored(buffers[name].cpu(), fields[name]).to(device) for name in names}

    def _stored(self) -> dict[str, Tensor]:
        return dict(self.named_buffers(recurse=False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """Move the buffers but never cast them: a cast passes over integers, and as such it is shown their bytes."""
        types = {name: tensor.dtype for name, tensor in self._stored().items()}
        for name, tensor in self._stored().items():
            self._buffers[name] = tensor.view(torch.uint8)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in self._stored().items():
            self._buffers[name] = tensor.view(types[name])
        self._forget()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def _forget(self) -> None:
        for name in ("_maps", "_correction"):
            self.__dict__.pop(name, None)
