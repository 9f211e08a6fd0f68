"""As much of vLLM's interface as lowbit's plug-in meets, for machines without vLLM: registry, base classes, and the
order in which a layer is built, loaded and told that it is whole. `benchmarks/interop/vllm_plugin.py` has the real one.
"""

import sys
from types import ModuleType

from torch import nn

REGISTERED = {}


def register_quantization_config(name):
    def register(kind):
        REGISTERED[name] = kind
        return kind

    return register


class QuantizeMethodBase:
    pass


class LinearMethodBase(QuantizeMethodBase):
    pass


class UnquantizedLinearMethod(LinearMethodBase):
    pass


class QuantizationConfig:
    def __init__(self):
        self.packed_modules_mapping = {}


class LinearBase(nn.Module):
    """outputs: of each of the layers that it joins. parallel: over how many devices each is cut."""

    def __init__(self, inputs, outputs, config, prefix, dtype, parallel=1):
        super().__init__()
        self.bias = None
        self.quant_method = config.get_quant_method(self, prefix)
        if isinstance(self.quant_method, UnquantizedLinearMethod):
            return
        sizes = [size // parallel for size in outputs]
        self.quant_method.create_weights(self, inputs, sizes, inputs, sum(outputs), dtype, weight_loader=None)

    def load(self, field, tensor, shard=None):
        door = self.get_parameter(field)
        door.weight_loader(door, tensor, *(() if shard is None else (shard,)))

    def forward(self, x):
        return self.quant_method.apply(self, x, self.bias)


def install():
    """Put the modules where `import vllm...` finds them."""
    members = {
        "vllm.model_executor.layers.linear": (LinearBase, LinearMethodBase, UnquantizedLinearMethod),
        "vllm.model_executor.layers.quantization": (register_quantization_config,),
        "vllm.model_executor.layers.quantization.base_config": (QuantizationConfig, QuantizeMethodBase),
    }
    for path, objects in members.items():
        steps = path.split(".")
        for end in range(1, len(steps) + 1):
            sys.modules.setdefault(".".join(steps[:end]), ModuleType(".".join(steps[:end])))
        vars(sys.modules[path]).update({one.__name__: one for one in objects})
