"""Which rounder leaves the least loss, and what does it cost?

    python benchmarks/rounding.py [MODEL ...] [--text SOURCE] [--every 1] [--state-bits 12] [--only beam ...] [--json F]

Every linear layer (or every n-th) of each model, with its Hessian from calibration windows of the original model, is
rounded by every rounder to a 3-bit integer grid with scales of rows, once in the columns' own order and once by pivots,
and after a rotation to E8P and to a 2-bit trellis in tiles of 128 x 2. Reported for each: proxy loss over LDLQ's, the
geometric mean over layers, and seconds over LDLQ's, summed over layers. A dash stands where a rounder refuses the code.
"""

import argparse
import json
import math
import time
from pathlib import Path

from lowbit.cli.demo import MODEL
from lowbit.codes import E8P, BitshiftTrellis, IntegerGrid, Levelled, Padded, TailBiting
from lowbit.core.errors import BadRequest
from lowbit.core.order import visit
from lowbit.core.parts import Code, Rounder, Shaped, Transform
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.rounding import (
    Beam,
    ClampSafe,
    CoordinateDescent,
    Gpfq,
    Ldlq,
    MagR,
    Nearest,
    QuantEase,
    RefittedScales,
    Stochastic,
)
from lowbit.transforms import NoTransform, RandomizedHadamard, StaticOrder
from tiles import layer_problems

ROUNDERS: dict[str, Rounder] = {
    "ldlq": Ldlq(),
    "nearest": Nearest(),
    "gpfq": Gpfq(),
    "stochastic": Stochastic(Ldlq()),
    "clamp-safe": ClampSafe(),
    "quantease 10": QuantEase(10),
    "quantease 30": QuantEase(30),
    "descent 1": CoordinateDescent(Ldlq(), 1),
    "descent 10": CoordinateDescent(Ldlq(), 10),
    "refitted": RefittedScales(Ldlq()),
    "beam 4": Beam(4),
    "beam 16": Beam(16),
    "beam 64": Beam(64),
    "beam 16, descent 5": CoordinateDescent(Beam(16), 5),
    "magr": MagR(Ldlq(), 0.02),
    "magr, descent 10": CoordinateDescent(MagR(Ldlq(), 0.02), 10),
    "magr, beam 16, descent 5": CoordinateDescent(MagR(Beam(16), 0.02), 5),
}
BASELINE = "ldlq"


def contenders(state_bits: int) -> dict[str, tuple[Transform, Code | Shaped]]:
    """What is rounded to, after which transform."""
    trellis = BitshiftTrellis(state_bits, 2, 1, (128, 2), "mul1")
    return {
        "integer": (NoTransform(), IntegerGrid(3)),
        "by pivots": (StaticOrder("pivot"), IntegerGrid(3)),
        "e8p": (RandomizedHadamard(), Padded(E8P())),
        "trellis": (RandomizedHadamard(sides="right"), Levelled(TailBiting(trellis))),
    }


def measure(problem: LayerProblem, state_bits: int, only: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Loss and seconds by code and rounder; a pair that does not go together is missing."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (transform, shaped) in contenders(state_bits).items():
        code = shaped.at(problem.shape) if isinstance(shaped, Shaped) else shaped
        fitted = transform.fit(problem, stream(0, "rounding"))
        inner, found[name] = fitted.forward(problem), {}
        for label in only:
            started = time.perf_counter()
            try:
                rounded = (
                    ROUNDERS[label].round(inner, code)
                    if fitted.order is None
                    else visit(ROUNDERS[label], inner, code, fitted.order)
                )
            except BadRequest:
                continue
            seconds = time.perf_counter() - started
            found[name][label] = {"loss": problem.relative_loss(fitted.undo(rounded.w_hat)), "seconds": seconds}
    return found


def summary(rows: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Geometric mean of losses over LDLQ's and sum of seconds over LDLQ's, by code and rounder."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name in rows[0]["codes"]:
        tables = [row["codes"][name] for row in rows]
        base = sum(table[BASELINE]["seconds"] for table in tables)
        result[name] = {
            label: {
                "loss": math.exp(
                    sum(math.log(table[label]["loss"] / table[BASELINE]["loss"]) for table in tables) / len(tables)
                ),
                "seconds": sum(table[label]["seconds"] for table in tables) / base,
            }
            for label in tables[0]
        }
        result[name][BASELINE]["own_seconds"] = base
    return result


def show(model: str, layers: int, found: dict[str, dict[str, dict[str, float]]]) -> None:
    labels = list(dict.fromkeys(label for table in found.values() for label in table))
    print(f"\n{model}, {layers} layers: loss over LDLQ's (seconds over LDLQ's)")
    print(f"{'':<26}" + "".join(f"{name:>18}" for name in found))
    for label in labels:
        cells = [f"{t[label]['loss']:.3f} ({t[label]['seconds']:.1f})" if label in t else "-" for t in found.values()]
        print(f"{label:<26}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
    print(f"{'seconds of LDLQ':<26}" + "".join(f"{t[BASELINE]['own_seconds']:>18.2f}" for t in found.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[MODEL])
    parser.add_argument("--text", default="stdlib", help="calibration text, as for lowbit quantize")
    parser.add_argument("--every", type=int, default=1, help="only each n-th layer")
    parser.add_argument("--state-bits", type=int, default=12, help="of the trellis")
    parser.add_argument("--only", nargs="+", default=list(ROUNDERS), choices=list(ROUNDERS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    only = list(dict.fromkeys([BASELINE, *options.only]))
    document = {"state_bits": options.state_bits, "text": options.text, "models": {}}
    for folder in options.models:
        rows = []
        for name, problem in layer_problems(folder, options.text, options.every):
            if not document["models"] and not rows:
                measure(problem, options.state_bits, only)  # compiles the kernels
            rows.append({"layer": name, "shape": problem.shape, "codes": measure(problem, options.state_bits, only)})
        document["models"][folder.name] = {"layers": rows, "summary": summary(rows)}
        show(folder.name, len(rows), document["models"][folder.name]["summary"])
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
