"""Products of float32 matrices, as fast as the processor can.

torch multiplies float32 matrices on the processor with MKL, which leaves the widest instructions of other makers'
processors unused; oneDNN, which torch carries as well, asks what a processor can do and not who made it. On an AMD EPYC
(Zen 5), one thread: 48e9 multiply-adds a second by MKL, 98 to 114e9 by oneDNN, for 256 to 8192 inputs. There is no
oneDNN for float64.

oneDNN adds up each number of the result in one go where MKL takes a few hundred terms at a time: 2048 terms are three
times as far off, 1e-6 of the largest. Sums that shall be closer are taken in pieces by the caller. The result does not
depend on the number of threads (1 to 16, 500 shapes).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def rows_times(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """x y^T + bias, [..., N]. x: [..., K]; y: [N, K]; bias: [N]. Gradients do not flow through it.

    Fast for matrices whose rows lie one behind the other; oneDNN takes others, such as a choice of columns, but slowly.
    """
    if _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == y.dtype == torch.float32:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, bias, "none", [], "")
        return product
    return functional.linear(x, y, bias)


class FastLinear(TorchFunctionMode):
    """While the body runs, linear layers of any module, of which no gradients are asked, multiply by `rows_times`."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fast = function is functional.linear and not torch.is_grad_enabled()
        return (rows_times if fast else function)(*args, **(kwargs or {}))
