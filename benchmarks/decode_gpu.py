"""How near does a GPU come to reading packed weights as fast as its memory delivers them?

    python benchmarks/decode_gpu.py [--sizes 4096x4096 14336x4096] [--tokens 1 4 16] [--json F]
    python benchmarks/decode_gpu.py --interpret      by Triton's interpreter on the CPU: the path, no times

Each code multiplies 1 to 16 tokens by a layer of random codes, in turn with torch's float16 product and with a copy of
256 MiB, whose speed counts as that of the memory. Reported: the least of 20 times between device events, each of
enough calls on different layers that none is found in a cache; packed bytes a second over the copy's bytes a second;
time over that of the float16 product. Calls are issued one by one, so small layers measure the host as well. Where
exllamav3 is installed, its layer of 2, 3 and 4 bits runs beside them, its two Hadamard transforms included.

Not run on a GPU where it was written; exllamav3's part was written from its source (commit 0c64750) and never run.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

REPETITIONS = 20
CACHE_BYTES = 256 << 20
COLUMNS = ("code", "shape", "tokens", "microseconds", "of_memory", "of_float16")


@dataclass(frozen=True)
class Row:
    """of_memory: bytes a second over those of a copy; of_float16: time over that of torch's product."""

    code: str
    shape: str
    tokens: int
    microseconds: float
    of_memory: float
    of_float16: float


def measure(shape: tuple[int, int], tokens: list[int], device: str, clock: Callable) -> Iterator[Row]:
    """All codes of one layer, the float16 product first."""
    import torch

    block = torch.zeros(CACHE_BYTES if device == "cuda" else 1024, dtype=torch.uint8, device=device)
    there = torch.empty_like(block)
    bandwidth = 2 * block.numel() / clock([lambda: there.copy_(block)])
    (n, k), layers = shape, _layers(shape, device)
    for count in tokens:
        x = torch.randn(count, k, device=device).half()
        dense = [torch.randn(n, k, device=device).half() for _ in range(_copies(2 * n * k, device))]
        plain = clock([lambda w=w, x=x: x @ w.T for w in dense])
        yield Row("float16", f"{n}x{k}", count, 1e6 * plain, 2 * n * k / plain / bandwidth, 1.0)
        del dense
        for name, (nbytes, multiply) in layers.items():
            seconds = clock([lambda f=f, x=x: f(x) for f in multiply])
            share = nbytes / seconds / bandwidth
            yield Row(name, f"{n}x{k}", count, 1e6 * seconds, share, seconds / plain)


def _layers(shape: tuple[int, int], device: str) -> dict[str, tuple[int, list[Callable]]]:
    """For each code its stored bytes, and products with enough layers of it to overflow a cache."""
    import torch

    from lowbit.codes import E8P, BitshiftTrellis, IntegerGrid, TailBiting
    from lowbit.core.fields import Bits
    from lowbit.runtime.gpu import product_on_gpu
    from lowbit.runtime.product import StoredCodes

    codes = {
        **{f"mul1 {k} bits, 256 x 1": TailBiting(BitshiftTrellis(16, k, 1, (256, 1), "mul1")) for k in (2, 3, 4)},
        "mul1 2 bits, 16 x 16": TailBiting(BitshiftTrellis(16, 2, 1, (16, 16), "mul1")),
        "strata 2 bits, 128 x 2": TailBiting(BitshiftTrellis(16, 2, 1, (128, 2), "strata")),
        "E8P 2 bits": E8P(2),
        **{f"grid {bits} bits, g128": IntegerGrid(bits, 128) for bits in (2, 3, 4)},
    }

    def stored(code: object) -> StoredCodes:
        tensors = {}
        for name, field in code.fields(shape).items():
            if isinstance(field, Bits):
                tensors[name] = torch.randint(0, 256, (field.nbytes,), dtype=torch.uint8, device=device)
            else:
                tensors[name] = torch.ones(field.shape, dtype=field.dtype, device=device)
        return StoredCodes(shape, tensors)

    found = {}
    for name, code in codes.items():
        nbytes = sum(field.nbytes for field in code.fields(shape).values())
        many = [stored(code) for _ in range(_copies(nbytes, device))]
        found[name] = nbytes, [lambda x, code=code, one=one: product_on_gpu(code, one, x) for one in many]
    return {**found, **_exllamav3_layers(shape, device)}


def _exllamav3_layers(shape: tuple[int, int], device: str) -> dict[str, tuple[int, list[Callable]]]:
    """The same of exllamav3; nothing, and a line that says so, where it is not installed."""
    import torch

    if device != "cuda" or find_spec("exllamav3") is None:
        print("exllamav3: not installed, or no GPU; left out")
        return {}
    from exllamav3.modules.quant.exl3 import LinearEXL3

    n, k = shape

    def layer(bits: int) -> LinearEXL3:
        codes = torch.randint(-(1 << 15), 1 << 15, (k // 16, n // 16, 16 * bits), dtype=torch.int16, device=device)
        ones = {"suh": torch.ones(k).half().to(device), "svh": torch.ones(n).half().to(device)}
        return LinearEXL3(None, k, n, trellis=codes, mul1=torch.zeros(1, dtype=torch.int32, device=device), **ones)

    found = {}
    for bits in (2, 3, 4):
        nbytes = n * k * bits // 8
        layers = [layer(bits) for _ in range(_copies(nbytes, device))]
        found[f"exllamav3 {bits} bits"] = nbytes, [lambda x, one=one: one.forward(x, {}) for one in layers]
    return found


def _copies(nbytes: int, device: str) -> int:
    return math.ceil(CACHE_BYTES / nbytes) if device == "cuda" else 1


def seconds_on_gpu(calls: list[Callable]) -> float:
    """The least time of a call, over REPETITIONS rounds of all of them, after one that compiles."""
    import torch

    rounds = []
    for _ in range(REPETITIONS + 1):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for call in calls:
            call()
        stop.record()
        stop.synchronize()
        rounds.append(start.elapsed_time(stop) / 1e3 / len(calls))
    return min(rounds[1:])


def no_time(calls: list[Callable]) -> float:
    """Runs the calls; their time by the interpreter says nothing."""
    for call in calls:
        call()
    return math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["4096x4096", "14336x4096", "4096x14336"], help="N x K")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--interpret", action="store_true", help="check the path on the CPU, without times")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
        device, clock, sizes, tokens, machine = "cpu", no_time, [(256, 128)], [1, 16], "interpreter"
    else:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("decode_gpu.py: no GPU here, nothing measured. --interpret checks the path without one.")
        device, clock, machine = "cuda", seconds_on_gpu, torch.cuda.get_device_name()
        sizes = [tuple(map(int, size.split("x"))) for size in arguments.sizes]
        tokens = arguments.tokens
    print(machine)
    print(" | ".join(COLUMNS))
    rows = []
    for shape in sizes:
        for row in measure(shape, tokens, device, clock):
            rows.append(asdict(row))
            print(f"{row.code} | {row.shape} | {row.tokens} | {row.microseconds:.1f} | {row.of_memory:.1%} | "
                  f"{row.of_float16:.3f}", flush=True)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
