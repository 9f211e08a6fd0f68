"""Does a method gain from parts that its paper did not use?

    python benchmarks/mix.py [MODEL ...] [--text SOURCE] [--only squeezellm ...] [--pairs "descent, hadamard" ...]

Each method's code, at the bits of its recipe, meets every rounding here, as its inputs are and rotated by a randomized
Hadamard transform: the product of parts. Beside the recipe as its paper has it, each pair is measured as in
`benchmarks/quality.py`. Bits differ a little (the rotation's signs are stored, 1 / N), so a pair beats the recipe only
where it does at equal bits, at 6 dB a bit, and by more than twice the standard error of the difference:

    KL 4^(bits - own bits) + 2 error < own KL

The windows are the same for both, so the error, that of independent windows, is too large rather than too small.
"""

import argparse
import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from lowbit.cli.demo import MODEL
from lowbit.core.errors import BadRequest
from lowbit.core.recipe import Recipe
from lowbit.recipes import make_recipe
from quality import measure, split

METHODS = (
    "optq",
    "quip_sharp",
    "llm_fp4",
    "zeroquant_fp6",
    "normal_float",
    "block_float",
    "dint",
    "nupes",
    "ternary",
    "squeezellm",
    "jlcm",
    "lcq",
    "gptvq",
    "vptq",
    "gptqt",
    "db_llm",
    "pb_llm",
    "dgq",
    "finequant",
    "slim_llm",
)
# Its levels alone, by diag(H): sensitivities of single weights are unknown behind a rotation.
SETTINGS = {"squeezellm": {"outliers": 0, "sensitive": 0, "importance": "diagonal"}}
GROUPED = ("normal_float", "ternary", "lcq", "gptvq", "db_llm", "pb_llm", "dgq", "finequant", "slim_llm")
ROUNDINGS = {
    "nearest": {"rounder": "Nearest"},
    "ldlq": {"statistic": "SecondMoment", "rounder": "Ldlq"},
    "qronos": {"statistic": "CrossMoment", "rounder": "Ldlq"},
    "descent": {"statistic": "SecondMoment", "rounder": "CoordinateDescent(Ldlq, 4)"},
}
COORDINATES = {"": "NoTransform", ", hadamard": 'RandomizedHadamard(sides="right")'}
PAIRS = {
    rounding + coordinates: parts | {"transform": transform}
    for rounding, parts in ROUNDINGS.items()
    for coordinates, transform in COORDINATES.items()
}
OWN = "own"


def candidates(method: str, pairs: list[str], group_size: int) -> dict[str, Recipe]:
    """The recipe itself and the pairs that differ from it, by label."""
    settings = SETTINGS.get(method, {}) | ({"group_size": group_size} if method in GROUPED else {})
    own = make_recipe(method, settings)
    found = {OWN: own}
    for label in pairs:
        recipe = make_recipe(method, settings | PAIRS[label])
        if dataclasses.replace(recipe, name=own.name) != own:
            found[label] = dataclasses.replace(recipe, refresh="input")
    return found


def at_equal_bits(row: dict[str, Any], own: dict[str, Any]) -> float:
    """A row's KL at the bits of `own`."""
    return float(row["kl"] * 4 ** (row["bits_per_weight"] - own["bits_per_weight"]))


def beats(row: dict[str, Any], own: dict[str, Any]) -> bool:
    return at_equal_bits(row, own) + 2 * math.hypot(row["kl_error"], own["kl_error"]) < own["kl"]


def run(
    method: str, recipes: dict[str, Recipe], model: Path, texts: tuple[str, str], counts: tuple[int, int]
) -> dict[str, Any]:
    """What was measured of a method's recipes, by pair; for a refused one, why."""
    rows: dict[str, Any] = {}
    for label, recipe in recipes.items():
        try:
            row = measure(model, recipe, texts, *counts)
        except BadRequest as error:
            rows[label] = {"refused": str(error).splitlines()[0]}
            print(f"{method:<15}{label:<20} refused: {rows[label]['refused']}", flush=True)
            continue
        rows[label] = row
        note = "beats its own" if OWN in rows and label != OWN and beats(row, rows[OWN]) else ""
        numbers = f"{row['bits_per_weight']:>9.3f}{row['kl']:>11.5f}{row['kl_error']:>9.5f}{row['seconds']:>8.1f}"
        print(f"{method:<15}{label:<20}{numbers}  {note}", flush=True)
    return rows


def summary(found: dict[str, dict[str, Any]]) -> str:
    """A line a method: its own choice, its best pair, and the ratio of the two at equal bits."""
    lines = [
        f"{'method':<15}{'bits':>7}{'own KL':>11}  {'best pair':<20}{'KL':>11}{'ratio':>8}{'pairs that beat it':>20}"
    ]
    for method, rows in found.items():
        own, measured = rows[OWN], {label: row for label, row in rows.items() if "kl" in row and label != OWN}
        if "kl" not in own or not measured:
            continue
        best = min(measured, key=lambda label: at_equal_bits(measured[label], own))
        better = sum(beats(row, own) for row in measured.values())
        ratio = at_equal_bits(measured[best], own) / own["kl"]
        lines.append(
            f"{method:<15}{own['bits_per_weight']:>7.3f}{own['kl']:>11.5f}  {best:<20}{measured[best]['kl']:>11.5f}"
            f"{ratio:>8.3f}{better:>13} of {len(measured):<2}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[MODEL])
    parser.add_argument("--text", default="stdlib", help="a source as for lowbit quantize; a .txt file is cut in two")
    parser.add_argument("--only", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--group-size", type=int, default=64, help="of the methods that the papers give groups")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows")
    parser.add_argument("--windows", type=int, default=32, help="evaluation windows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        texts, counts = split(options.text, Path(folder)), (options.samples, options.windows)
        for model in options.models:
            print(f"\n{model.name}: {options.samples} calibration windows, torch on {torch.get_num_threads()} threads")
            print(f"{'method':<15}{'pair':<20}{'bits':>9}{'KL':>11}{'+-':>9}{'seconds':>8}")
            here = found.setdefault(model.name, {})
            for method in options.only:
                here[method] = run(method, candidates(method, options.pairs, options.group_size), model, texts, counts)
                if options.json:
                    settings = {
                        "text": options.text,
                        "group_size": options.group_size,
                        "samples": options.samples,
                        "windows": options.windows,
                    }
                    options.json.write_text(json.dumps(settings | {"models": found}, indent=1))
            print("\n" + summary(here))


if __name__ == "__main__":
    main()
