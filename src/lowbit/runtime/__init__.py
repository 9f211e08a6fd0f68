"""The runtime: the modules that a loaded model runs, straight from the tensors as they are stored."""

from lowbit.runtime import e8p as e8p
from lowbit.runtime import finer as finer
from lowbit.runtime import fitting as fitting
from lowbit.runtime import integer as integer
from lowbit.runtime import lookup as lookup
from lowbit.runtime import partial as partial
from lowbit.runtime import trellis as trellis
from lowbit.runtime import vector as vector
from lowbit.runtime.experts import LinearExperts as LinearExperts
from lowbit.runtime.experts import is_fused_experts as is_fused_experts
from lowbit.runtime.linear import QuantizedLinear as QuantizedLinear
