"""How fast does one matrix-vector product go straight from the stored codes?

    python benchmarks/decode.py [--sizes 1024 8192] [--tokens 1] [--threads 1 2] [--only trellis] [--ggml libggml.so]
                                [--seconds 0.5] [--json out.json]

Square layers of random codes: 1024 x 1024 stays in the caches, 8192 x 8192 does not. Reported for each code, size and
number of threads: billions of weights and of stored bytes a second (best of many), the latter also as a fraction of
what copying a large block of memory reaches here (reading and writing counted), and the gain over `slab_product`,
which decodes a slab of rows and multiplies, and over torch's product with the same layer in float32. Beside them the
dot products of ggml for Q2_K and Q4_K, one thread, where its library is found: the one given, or that of the package
llama_cpp.
"""

import argparse
import ctypes
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
import numpy as np
import torch

from lowbit.codes import (
    E8P,
    BinaryCoding,
    BitshiftTrellis,
    BlockScaled,
    ClusteredLevels,
    Digits,
    DualGrained,
    IntegerGrid,
    LaidOut,
    Lookup,
    LowRankLevels,
    Planes,
    ScaledLevels,
    Scales,
    SuperBlocks,
    TailBiting,
    VectorCodebook,
)
from lowbit.core.fields import Array, Bits
from lowbit.core.parts import Code
from lowbit.core.random import stream
from lowbit.formats.checkpoint import layout
from lowbit.runtime.product import StoredCodes, product, slab_product

GAINS = {"gain_over_slabs": 9, "gain_over_float32": 7}
TILES = ((256, 1), (128, 2), (16, 16))


def codes() -> dict[str, Code]:
    found: dict[str, Code] = {f"integer {bits} bits, groups of 128": IntegerGrid(bits, 128) for bits in (2, 3, 4, 8)}
    found["E8P 2 bits"] = E8P()
    found |= {
        "nf4, groups of 64": Lookup(ScaledLevels("nf4", Scales("uint8", "row")), 64),
        "mxfp4": Lookup(ScaledLevels("e2m1", Scales("e8m0")), 32),
        "fp6 in two streams": LaidOut(Lookup(ScaledLevels("e3m2")), Planes(4, 2)),
        "ternary digits, groups of 128": LaidOut(Lookup(ScaledLevels("ternary"), 128), Digits(3)),
        "k-means 3 bits a row": Lookup(ClusteredLevels(3)),
        "low-rank tables, 2 bits, groups of 64": Lookup(LowRankLevels(2, 2), 64),
        "two planes, groups of 64": Lookup(BinaryCoding(2), 64),
        "dual-grained 4 bits, groups of 128": Lookup(DualGrained(4), 128),
        "super-blocks 4 bits": Lookup(SuperBlocks(4, 6, 8), 32),
        "pairs of inputs, 2 bits": VectorCodebook(2, 4, group_size=256),
        "pairs in blocks of 64": BlockScaled(VectorCodebook(2, 4), 64),
        "fours of outputs, 2 bits": VectorCodebook(4, 8, along="outputs"),
        "eights of outputs, 2 bits": VectorCodebook(8, 16, along="outputs"),
    }
    for values in ("mul1", "1mad", "strata"):
        for bits in (2, 3, 4):
            for tile in TILES if bits == 2 else TILES[1:2]:
                name = f"trellis {values} {bits} bits, {tile[0]} x {tile[1]}"
                found[name] = TailBiting(BitshiftTrellis(16, bits, 1, tile, values))
    return found


def random_layer(code: Code, size: int) -> tuple[StoredCodes, int]:
    """A layer [size, size] of random codes with all scales 1, and its bytes."""
    generator, tensors, total = stream(0, "decode"), {}, 0
    for name, field in code.fields((size, size)).items():
        dtype, shape = layout(field)
        if isinstance(field, Bits):
            tensors[name] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        else:
            tensors[name] = torch.ones(shape, dtype=dtype)
        assert isinstance(field, Array | Bits)
        total += field.nbytes
    return StoredCodes((size, size), tensors), total


def best(work: Callable[[], object], seconds: float) -> float:
    """The least time of a call, in seconds, of as many as fit in `seconds`, three at least."""
    work()  # compiles
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def copy_bandwidth(seconds: float) -> float:
    """Bytes a second read and written when a block of 256 MB is copied by one thread."""
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    return 2 * source.nbytes / best(lambda: np.copyto(target, source), seconds)


def ggml_library(given: Path | None) -> ctypes.CDLL | None:
    """The library given, or libggml-cpu of an installed llama_cpp."""
    if given is not None:
        return ctypes.CDLL(str(given))
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    for name in ("libggml-cpu.so", "libggml-cpu.dylib", "ggml-cpu.dll", "libggml.so"):
        if (folder / name).exists():
            return ctypes.CDLL(str(folder / name))
    return None


class TypeTraits(ctypes.Structure):
    """ggml_type_traits_cpu as far as it is read here: from_float, vec_dot, vec_dot_type, nrows."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


# Type number in ggml.h and bytes of a block of 256 weights.
GGML = {"Q2_K": (10, 84), "Q4_K": (12, 144)}


def ggml_products(library: ctypes.CDLL, size: int, seconds: float) -> Iterator[dict]:
    """A product by ggml's vec_dot, row by row; calling from Python is counted, some 0.5 us a row."""
    library.ggml_cpu_init()
    library.ggml_get_type_traits_cpu.restype = ctypes.POINTER(TypeTraits)
    kind = ctypes.CFUNCTYPE(
        None, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
    )  # fmt: skip
    for name, (number, block) in GGML.items():
        dot = kind(library.ggml_get_type_traits_cpu(number).contents.vec_dot)
        row = size // 256 * block
        weight = np.zeros(size * row, np.uint8)
        x, y = np.zeros(size // 256 * 292, np.uint8), np.zeros(size, np.float32)
        arguments = [(size, y.ctypes.data + 4 * r, 0, weight.ctypes.data + r * row, 0, x.ctypes.data, 0, 1)
                     for r in range(size)]  # fmt: skip
        spent = best(lambda arguments=arguments, dot=dot: [dot(*one) for one in arguments], seconds)
        yield row_of(f"ggml {name}", size, 1, 1, weight.nbytes, spent)


def row_of(name: str, size: int, threads: int, tokens: int, stored: int, spent: float) -> dict:
    return {
        "code": name, "size": size, "threads": threads, "tokens": tokens, "bits_per_weight": 8 * stored / size**2,
        "weights_per_second": size**2 / spent, "bytes_per_second": stored / spent,
    }  # fmt: skip


def measure(name: str, code: Code, size: int, options: argparse.Namespace) -> Iterator[dict]:
    layer, stored = random_layer(code, size)
    x = torch.randn(options.tokens, size, generator=stream(1, "decode"))
    weight = torch.randn(size, size, generator=stream(2, "decode"))
    for threads in options.threads:
        torch.set_num_threads(threads)
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        spent = best(lambda: product(code, layer, x), options.seconds)
        slabs = best(lambda: slab_product(code, layer, x), options.seconds)
        dense = best(lambda: x @ weight.T, options.seconds)
        gains = {"gain_over_slabs": slabs / spent, "gain_over_float32": dense / spent}
        yield {**row_of(name, size, threads, options.tokens, stored, spent), **gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="measure the codes whose name contains this")
    parser.add_argument("--ggml", type=Path, help="a shared library of ggml's CPU backend")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    copied = copy_bandwidth(options.seconds)
    print(f"{platform.machine()}, torch {torch.__version__}; copying: {copied / 1e9:.1f} GB/s on one thread")
    print(
        f"{'code':<38}{'size':>6}{'threads':>8}{'bits':>6}{'Gweights/s':>12}{'GB/s':>7}{'of copy':>9}"
        f"{'x slabs':>9}{'x f32':>7}"
    )
    rows = []

    def show(row: dict) -> None:
        rows.append(row)
        rate = row["bytes_per_second"]
        gains = [f"{row[name]:>{width}.1f}" for name, width in GAINS.items() if name in row]
        print(
            f"{row['code']:<38}{row['size']:>6}{row['threads']:>8}{row['bits_per_weight']:>6.2f}"
            f"{row['weights_per_second'] / 1e9:>12.2f}{rate / 1e9:>7.2f}{rate / copied:>9.0%}"
            f"{''.join(gains)}",
            flush=True,
        )

    library = ggml_library(options.ggml)
    for size in options.sizes:
        for name, code in codes().items():
            if options.only in name:
                for row in measure(name, code, size, options):
                    show(row)
        if library is not None:
            for row in ggml_products(library, size, options.seconds):
                show(row)
    if library is None:
        print("ggml Q2_K, Q4_K: skipped, no llama_cpp installed and no --ggml LIBRARY given")
    if options.json:
        document = {"machine": platform.machine(), "copy_bytes_per_second": copied, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
