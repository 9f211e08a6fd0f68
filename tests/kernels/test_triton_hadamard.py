"""The GPU's Hadamard transform, by Triton's interpreter, against the whole matrix."""

import pytest
import torch

from lowbit.core.random import stream
from lowbit.kernels.hadamard import mix_reference

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not checked (pip install lowbit[gpu])")

from lowbit.kernels.triton import hadamard as on_gpu


@pytest.mark.parametrize("power", [0, 1, 3, 7])
def test_it_multiplies_by_the_matrix(power: int) -> None:
    x = torch.randn(2, 3, 2**power, generator=stream(0, "triton hadamard", str(power)))
    expected = mix_reference(x, power, torch.ones(1, 1))
    torch.testing.assert_close(on_gpu.mix(x, power), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(on_gpu.mix(x.half(), power), expected.half(), rtol=2e-3, atol=2e-3)


def test_no_rows() -> None:
    assert on_gpu.mix(torch.empty(0, 8), 3).shape == (0, 8)
