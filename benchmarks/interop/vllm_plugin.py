"""Does vLLM, through lowbit's plug-in, load a folder and compute what lowbit computes?

Environment: vLLM (0.33 was tried; `pip install --no-deps vllm` and what its linear layers import suffice) and lowbit;
no GPU, so no attention and no engine: vLLM's own joined layers, its own weight loader and name mapper, on the CPU.

    python benchmarks/interop/vllm_plugin.py LOWBIT_FOLDER ...

The folder holds a Llama. For each, builds the linear layers of every block with the method that vLLM finds under the
name in config.json, streams the files into them, and fails where an output differs from lowbit's by more than float32
sums may; then compiles a layer into one whole graph and sees a missing tensor and tensor parallelism refused.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.utils import AutoWeightsLoader
from vllm.plugins import load_general_plugins

import lowbit
from lowbit.core.errors import BadRequest

TOLERANCE = 1e-5
JOINED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


class Linears(nn.Module):
    """The linear layers of a Llama, joined as vLLM joins them, under the names that it gives them."""

    def __init__(self, config: dict, method) -> None:
        super().__init__()
        method.packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping
        self.quant_config = method
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(
            self._block(config, method, f"model.layers.{index}") for index in range(config["num_hidden_layers"])
        )

    def _block(self, config: dict, method, prefix: str) -> nn.Module:
        width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        kv_heads, size = config["num_key_value_heads"], config.get("head_dim") or width // heads
        bias, how = bool(config.get("attention_bias")), {"quant_config": method}
        block = nn.Module()
        block.self_attn, block.mlp = nn.Module(), nn.Module()
        block.self_attn.qkv_proj = QKVParallelLinear(
            width, size, heads, kv_heads, bias=bias, prefix=f"{prefix}.self_attn.qkv_proj", **how
        )
        block.self_attn.o_proj = RowParallelLinear(
            heads * size, width, bias=bias, prefix=f"{prefix}.self_attn.o_proj", **how
        )
        block.mlp.gate_up_proj = MergedColumnParallelLinear(
            width, [inner, inner], bias=False, prefix=f"{prefix}.mlp.gate_up_proj", **how
        )
        block.mlp.down_proj = RowParallelLinear(inner, width, bias=False, prefix=f"{prefix}.mlp.down_proj", **how)
        return block

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """As vLLM does: names are mapped, tensors streamed, then each layer is told that it has them all."""
        chosen = ((name, tensor) for name, tensor in tensors.items() if "_proj" in name)
        AutoWeightsLoader(self).load_weights(chosen, mapper=LlamaForCausalLM.hf_to_vllm_mapper)
        for _, layer in self.linears():
            layer.quant_method.process_weights_after_loading(layer)

    def linears(self):
        for index, block in enumerate(self.model.layers):
            for name in JOINED:
                yield f"model.layers.{index}.{name}", block.get_submodule(name)


def served(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text())
    kind = get_quantization_config(config["quantization_config"]["quant_method"])
    tensors = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    theirs, ours = (
        Linears(config, kind.from_config(config["quantization_config"])),
        lowbit.load(folder, dtype=torch.float32),
    )
    theirs.load(tensors)
    worst = 0.0
    for name, layer in theirs.linears():
        parent = name.removesuffix(next(joined for joined in JOINED if name.endswith(joined)))
        parts = [ours.get_submodule(f"{parent}{part}") for part in JOINED[name.removeprefix(parent)]]
        x = torch.randn(5, layer.input_size, generator=torch.Generator().manual_seed(0))
        expected, (found, _) = torch.cat([part(x) for part in parts], dim=-1), layer(x)
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    whole = torch.compile(lambda x: layer(x)[0] * 2, fullgraph=True, backend="eager")
    compiled = bool((whole(x) == layer(x)[0] * 2).all())
    refused = refuses_a_gap(config, kind, tensors) and refuses_a_cut(config, kind)
    print(
        f"{folder.name}: {kind.__name__}, {len(list(theirs.linears()))} layers, outputs differ by {worst:.1e} of the "
        f"largest; one graph: {compiled}; a gap and a cut are refused: {refused}",
        flush=True,
    )
    return worst <= TOLERANCE and compiled and refused


def refuses_a_gap(config: dict, kind, tensors: dict[str, torch.Tensor]) -> bool:
    gone = next(name for name in tensors if name.endswith("k_proj.weight"))
    model = Linears(config, kind.from_config(config["quantization_config"]))
    try:
        model.load({name: tensor for name, tensor in tensors.items() if name != gone})
    except BadRequest as error:
        return gone in str(error)
    return False


def refuses_a_cut(config: dict, kind) -> bool:
    method = kind.from_config(config["quantization_config"])
    try:
        ColumnParallelLinear(
            config["hidden_size"],
            config["intermediate_size"],
            bias=False,
            quant_config=method,
            prefix="model.layers.0.mlp.up_proj",
            tp_rank=0,
            tp_size=2,
        )
    except BadRequest as error:
        return "tensor-parallel-size 1" in str(error)
    return False


def main(*folders: str) -> int:
    load_general_plugins()
    on_cpu = VllmConfig(device_config=DeviceConfig(device="cpu"))
    with tempfile.TemporaryDirectory() as place, set_current_vllm_config(on_cpu):
        init_distributed_environment(1, 0, f"file://{place}/store", 0, backend="gloo")
        initialize_model_parallel()
        with torch.no_grad():
            return sum(not served(Path(folder)) for folder in folders)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
