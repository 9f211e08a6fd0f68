"""Tiny random models, quantized by hand into checkpoint folders: what the pipeline does, without the pipeline."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import lowbit
from lowbit.core.layer import QuantizedLayer, quantize_layer
from lowbit.core.problem import LayerProblem
from lowbit.core.recipe import Recipe
from lowbit.formats.checkpoint import quantization_config, stored_tensors
from lowbit.formats.files import write_tensors_atomically
from lowbit.integrations.transformers import remote_code_stub
from lowbit.recipes import optq, rtn, to_dict
from lowbit.runtime import LinearExperts, is_fused_experts

TOKENS = torch.arange(24).view(2, 12) % 61

SIZES = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **HEADS, attention_bias=True),
    "tied": LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=64, n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0),
    "mixtral": MixtralConfig(**SIZES, **HEADS, num_local_experts=3, num_experts_per_tok=2),
}
RECIPES = (rtn(bits=4, group_size=16), optq(bits=3), optq(bits=2, group_size=16, act_order=True, symmetric=True))


def tiny_model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of the kind, biases and all, its experts separated."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=dtype).eval()
    for name, module in list(model.named_modules()):
        if is_fused_experts(module):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.1)
            model.set_submodule(name, LinearExperts.from_fused(module))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def quantize_in_place(model: PreTrainedModel) -> dict[str, QuantizedLayer]:
    """Quantize the linear layers of all blocks; the model keeps the dequantized weights."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name != "lm_head":
            flip = isinstance(module, Conv1D)
            weight = module.weight.detach().float()
            layer = _solved(weight.T.contiguous() if flip else weight, RECIPES[len(layers) % len(RECIPES)])
            w_hat = layer.dequantize()
            module.weight.data = (w_hat.T.contiguous() if flip else w_hat).to(module.weight.dtype)
            layers[name] = layer
    return layers


def write_checkpoint(folder: Path, model: PreTrainedModel, layers: dict[str, QuantizedLayer]) -> None:
    """config.json with the stub's auto_map, the stub, and one safetensors file."""
    replaced = {f"{name}.weight" for name in layers}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in replaced | tied}
    for name, layer in layers.items():
        tensors |= {f"{name}.{field}": tensor for field, tensor in stored_tensors(layer).items()}
    described = {name: (to_dict(layer.recipe), layer.shape) for name, layer in layers.items()}
    text, auto_map = remote_code_stub(type(model).__name__)
    config = model.config.to_dict() | {
        "architectures": [type(model).__name__],
        "auto_map": auto_map,
        "quantization_config": quantization_config(described, lowbit.__version__),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors_atomically(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "modeling_lowbit.py").write_text(text)
    (folder / "config.json").write_text(json.dumps(config, default=str))


def logits(model: PreTrainedModel, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits.float()


def _solved(weight: Tensor, recipe: Recipe) -> QuantizedLayer:
    generator = torch.Generator().manual_seed(weight.shape[0])
    x = torch.randn(4 * weight.shape[1], weight.shape[1], generator=generator)
    return quantize_layer(LayerProblem(weight, (x.T @ x).double() / len(x)), recipe, generator)
