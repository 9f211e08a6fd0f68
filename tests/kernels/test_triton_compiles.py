"""The GPU kernels compile to machine code, which takes no GPU: the interpreter accepts what the compiler may not.

In a process of its own, because the interpreter's mode is chosen when Triton is imported.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not checked (pip install lowbit[gpu])")

SCRIPT = '''
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Absent:
    """Stands for a GPU that nothing is ever launched on."""
    def get_current_target(self): return GPUTarget("cuda", int(sys.argv[1]), 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(Absent())

from lowbit.codes import (
    E8P, BitshiftTrellis, BlockScaled, Digits, DualGrained, IntegerGrid, LaidOut, Lookup, LowRankLevels, Planes,
    ScaledLevels, TailBiting, VectorCodebook,
)
from lowbit.core.fields import Bits
from lowbit.kernels.triton import blocks, hadamard, viterbi
from lowbit.runtime import gpu
from lowbit.runtime.product import StoredCodes

def compiled(kernel, *args, **options):
    assert len(kernel.warmup(*args, grid=(1,), **options).asm["cubin"]) > 0
    print(kernel.__name__, "compiled")

N, K = 256, 256
def packed(code):
    stored = {}
    for name, field in code.fields((N, K)).items():
        shape, dtype = ((field.nbytes,), torch.uint8) if isinstance(field, Bits) else (field.shape, field.dtype)
        stored[name] = torch.zeros(shape, dtype=dtype)
    return gpu.packed(code, StoredCodes((N, K), stored))

strips = TailBiting(BitshiftTrellis(16, 2, 1, (256, 1), "mul1"))
others = [
    TailBiting(BitshiftTrellis(12, 3, 1, (2, 64), "3inst")), TailBiting(BitshiftTrellis(16, 2, 2, (16, 16), "hyb")),
    TailBiting(BitshiftTrellis(16, 2, 1, (16, 16), "exl3-mcg", "unit", order="fragment")),
    E8P(3), E8P(4), IntegerGrid(4, 128), IntegerGrid(3, symmetric=True), Lookup(LowRankLevels(2, 2), 64),
    Lookup(DualGrained(4), 128), LaidOut(Lookup(ScaledLevels("e3m2")), Planes(4, 2)),
    LaidOut(Lookup(ScaledLevels("ternary"), 128), Digits(3)), BlockScaled(VectorCodebook(4, 6, 5), 64),
    VectorCodebook(8, 12, along="outputs"),
]
x, sums = torch.zeros(1, K, dtype=torch.bfloat16), torch.zeros(1, 1, N)
p = packed(strips)
compiled(blocks._dense, p.stored, (p.scale, p.factors), x, N, K, p.decode, p.plan, p.scale_stride, p.block)
for p in map(packed, [strips, *others]):
    side = p.scale, p.factors
    compiled(blocks._product, p.stored, side, x, sums, N, K, 1, 4, p.decode, p.plan, p.scale_stride, p.block)
plan = viterbi.SearchPlan(16, 2, 2, 1, 1024)
short, byte, edge = (torch.zeros(8, dtype=dtype) for dtype in (torch.int16, torch.uint8, torch.int64))
compiled(viterbi._walk, short, short, short, byte, 64, 6, plan, num_warps=8)
compiled(viterbi._trace, byte, edge, edge, edge.int(), 8, 64, 6, plan, 32, num_warps=1)
compiled(hadamard._mix, torch.zeros(8), torch.zeros(8), 1024, 1.0, 10)
'''


def test_every_kernel_compiles_for_an_a100(tmp_path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "80"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
