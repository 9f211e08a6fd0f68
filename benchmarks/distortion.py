"""How far is each code from the rate-distortion limit of a Gaussian, and what does encoding cost?

    python benchmarks/distortion.py [--sequences 2048] [--only trellis] [--json out.json]

Every code encodes the same unit Gaussian weights, 256 x sequences, a column one sequence. Reported: bits per weight
(codes alone), the squared error over the squared weight after the one scale that is best (nmse) with its standard
error over the sequences, decibels above the limit 2^-2R, and processor time per weight on one thread.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable

import numba
import torch

from lowbit.codes import E8P, BitshiftTrellis, TailBiting
from lowbit.core.fields import Bits
from lowbit.core.parts import Code
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream

LENGTH = 256


def trellis(length: int, k: float, values: str = "mul1", dimension: int = 1) -> BitshiftTrellis:
    return BitshiftTrellis(length, k, dimension, (LENGTH, 1), values, scales="tensor")


def closed(length: int, k: float, values: str = "mul1", dimension: int = 1, window: int | None = None) -> TailBiting:
    return TailBiting(trellis(length, k, values, dimension), window)


CODES: dict[str, Callable[[], Code]] = {
    **{
        f"trellis L={length} {values} k={k}": lambda length=length, values=values, k=k: closed(length, k, values)
        for length in (12, 14, 16, 18)
        for values in ("mul1", "1mad", "3inst", "gaussian", "strata")
        for k in (1, 2, 3, 4)
        if length == 16 or values in ("mul1", "gaussian", "strata")
    },
    **{f"trellis L=16 hyb V=2 k={k:g}": lambda k=k: closed(16, k, "hyb", 2) for k in (1, 1.5, 2, 2.5, 3, 4)},
    **{f"trellis L=16 gaussian V=2 k={k:g}": lambda k=k: closed(16, k, "gaussian", 2) for k in (1.5, 2, 2.5, 3, 4)},
    **{
        f"trellis L=16 mul1 k=2 seam of {window}": lambda window=window: closed(16, 2, window=window)
        for window in (32, 48, 64)
    },
    "trellis L=16 mul1 k=2 from zero": lambda: trellis(16, 2),
    **{f"E8P {bits} bits": lambda bits=bits: E8P(bits) for bits in (2, 3, 4)},
}


def measure(name: str, weight: torch.Tensor) -> dict[str, float | str]:
    """One row of the table."""
    code, columns = CODES[name](), torch.arange(weight.shape[1])
    side = code.fit(LayerProblem(weight, torch.zeros(len(columns), len(columns), dtype=torch.float64)))
    code.encode(weight[:, :8], side, columns[:8])  # compiles
    start = time.process_time()
    _, values = code.encode(weight, side, columns)
    seconds = time.process_time() - start
    field = code.fields((weight.shape[0], weight.shape[1]))["codes"]
    assert isinstance(field, Bits)
    rate = field.bits * math.prod(field.shape) / weight.numel()
    w, w_hat = weight.double(), values.double()
    gain = float((w * w_hat).sum() / w_hat.square().sum())
    errors = (w - gain * w_hat).square().mean(0) / float(w.square().mean())
    nmse = float(errors.mean())
    return {
        "code": name,
        "bits": rate,
        "nmse": nmse,
        "standard_error": float(errors.std() / math.sqrt(len(errors))),
        "decibels_above_limit": 10 * math.log10(nmse * 4**rate),
        "microseconds_per_weight": 1e6 * seconds / weight.numel(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=2048)
    parser.add_argument("--only", default="", help="measure the codes whose name contains this")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    weight = torch.randn(LENGTH, options.sequences, generator=stream(0, "distortion"))
    print(f"{options.sequences} sequences of {LENGTH}; {platform.machine()}, torch {torch.__version__}, one thread")
    print(f"{'code':<34}{'bits':>6}{'nmse':>10}{'+-':>9}{'dB':>7}{'us/weight':>11}")
    rows = []
    for name in (name for name in CODES if options.only in name):
        row = measure(name, weight)
        rows.append(row)
        print(
            f"{name:<34}{row['bits']:>6.3g}{row['nmse']:>10.5f}{row['standard_error']:>9.5f}"
            f"{row['decibels_above_limit']:>7.2f}{row['microseconds_per_weight']:>11.2f}",
            flush=True,
        )
    document = {"sequences": options.sequences, "length": LENGTH, "machine": platform.machine(), "rows": rows}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()
