"""How good is a model after each recipe, at its true bits per weight?

    python benchmarks/quality.py [MODEL ...] [--text SOURCE] [--bits 2 3 4] [--only trellis ...] [--json F]

Each recipe quantizes each model at each width, with the same calibration windows, and the checkpoint is measured on
held-out text against the original; a recipe that does not fit a model is left out, with the reason. Reported: bits per
weight over the quantized layers with everything stored for them, KL(original || quantized) in nats a token with its
standard error, perplexity, seconds, and which contenders nothing beats in both bits and KL. A .txt file has no held-out
part of its own: its last tenth is cut off for evaluation. `benchmarks/fronts.py` draws what --json keeps.
"""

import argparse
import inspect
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import lowbit
from lowbit.cli.demo import MODEL
from lowbit.core.errors import BadRequest
from lowbit.core.recipe import Recipe
from lowbit.pipeline.text import read_texts
from lowbit.recipes import CATALOGUE, make_recipe

GRID = {"act_order": True, "static_groups": True, "range": "mse"}
"""Integers at their usual best: papers that differ in how they round are compared on it, and as they were published."""
ON_GRIDS = ("qronos", "quantease", "gpfq", "magr", "boa")
AIMED = ("quip", "quip_sharp", "qtip", "exl3", "jlcm", "gptvq", "vptq", "kquant")


def on_the_grid(name: str) -> dict[str, Any]:
    """What of GRID is a setting of the recipe."""
    return {setting: GRID[setting] for setting in inspect.signature(CATALOGUE[name]).parameters if setting in GRID}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("rtn", {"range": "mse"}),
    "optq as published": ("optq", {}),
    "optq row": ("optq", GRID),
    "optq g128": ("optq", GRID | {"group_size": 128}),
    "integers row": ("integers", {"group_size": "row"}),
    "integers g128": ("integers", {"group_size": 128}),
    **{f"{name}, equal grid": (name, on_the_grid(name)) for name in ON_GRIDS},
    **{
        f"{name}, cross moment": (name, ({"group_size": 64} if name == "gptvq" else {}) | {"statistic": "CrossMoment"})
        for name in AIMED
    },
    "qtip hyb": ("qtip", {"values": "hyb"}),
    "gptvq": ("gptvq", {"group_size": 64}),
    "vptq": ("vptq", {}),
    "vptq of pairs, 6": ("vptq", {"dimension": 2, "index_bits": 6}),
    "vptq of pairs, 8": ("vptq", {"dimension": 2, "index_bits": 8}),
    "trellis, second moment": ("trellis", {"statistic": "SecondMoment"}),
    "trellis, one scale": ("trellis", {"scales": "tensor"}),
    **{
        f"optq by {statistic}": ("optq", {"statistic": expression, "act_order": True, "static_groups": True})
        for statistic, expression in {
            "second moment": "SecondMoment",
            "cross moment": "CrossMoment(1e-3)",
            "attention received": "WeightedMoment(AttentionReceived)",
            "activation norm": "WeightedMoment(ActivationNorm)",
            "token rarity": "WeightedMoment(TokenRarity)",
            "attention": "AttentionAware",
            "gradient covariance": "TwoSided(SecondMoment, GradientCovariance)",
        }.items()
    },
}
ALONE = ("rtn", "optq", "integers", "gptvq", "vptq")
"""Recipes that are there as variants only."""
CONTENDERS = VARIANTS | {name: (name, {}) for name in CATALOGUE if name not in ALONE}


def has_bits(label: str) -> bool:
    """Whether a contender comes in several widths; the others are measured once, as they are."""
    name, _ = CONTENDERS[label]
    return "bits" in inspect.signature(CATALOGUE[name]).parameters


def recipe_at(label: str, bits: int) -> Recipe:
    name, settings = CONTENDERS[label]
    return make_recipe(name, settings | {"bits": bits} if has_bits(label) else settings)


def measure(model: Path, recipe: Recipe, texts: tuple[str, str], samples: int, windows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        lowbit.quantize(model, folder, recipe, calibration=lowbit.Calibration(texts[0], samples))
        seconds = time.perf_counter() - started
        found = lowbit.evaluate(folder, text=texts[1], reference=model, windows=windows)
    assert found.divergence is not None
    assert found.size is not None
    assert found.size.bits_per_weight is not None
    return {
        "bits_per_weight": found.size.bits_per_weight,
        "bits_per_parameter": found.size.bits_per_parameter,
        "kl": found.divergence.kl.mean,
        "kl_error": found.divergence.kl.error or 0.0,
        "perplexity": found.perplexity.mean,
        "original_perplexity": found.divergence.perplexity.mean,
        "seconds": seconds,
    }


def front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other beats in both bits and KL, by bits."""
    best: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["bits_per_weight"], row["kl"])):
        if not best or row["kl"] < best[-1]["kl"]:
            best.append(row)
    return best


def split(source: str, folder: Path) -> tuple[str, str]:
    """Sources of calibration and evaluation text; a .txt file is cut, other sources split themselves."""
    if not source.endswith(".txt"):
        return source, source
    text = "<|endoftext|>".join(read_texts(source))
    cut = text.rindex("\n", 0, len(text) * 9 // 10)
    parts = folder / "calibration.txt", folder / "evaluation.txt"
    for part, piece in zip(parts, (text[:cut], text[cut:]), strict=True):
        part.write_text(piece, encoding="utf-8")
    return str(parts[0]), str(parts[1])


class Rows:
    """What was measured, kept in a file as it comes; what the file has is not measured again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: list[dict[str, Any]] = json.loads(path.read_text()) if path and path.exists() else []

    def row(self, model: str, label: str, bits: int) -> dict[str, Any] | None:
        """The row of a contender at a width; of one that comes in a single width, whichever was asked for."""
        for row in self.found:
            if (row["model"], row["recipe"]) == (model, label) and (row["bits"] == bits or not has_bits(label)):
                return row
        return None

    def add(self, row: dict[str, Any]) -> None:
        self.found.append(row)
        if self.path:
            self.path.write_text(json.dumps(self.found, indent=1))


def show(row: dict[str, Any]) -> None:
    if "left_out" in row:
        print(f"{row['recipe']:<28}{row['bits']:>5}  left out: {row['left_out']}", flush=True)
        return
    print(
        f"{row['recipe']:<28}{row['bits']:>5}{row['bits_per_weight']:>13.3f}{row['kl']:>10.5f}{row['kl_error']:>9.5f}"
        f"{row['perplexity']:>12.4f}{row['seconds']:>9.1f}",
        flush=True,
    )


def measured(rows: Rows, model: Path, texts: tuple[str, str], options: argparse.Namespace) -> None:
    """Measure and print every contender that `rows` lacks, and print those that it has."""
    for bits in options.bits:
        for label in options.only:
            if not has_bits(label) and bits != options.bits[0]:
                continue
            row = rows.row(model.name, label, bits)
            if row is None:
                row = {"model": model.name, "recipe": label, "bits": bits}
                try:
                    row |= measure(model, recipe_at(label, bits), texts, options.samples, options.windows)
                except BadRequest as error:
                    row |= {"left_out": str(error).splitlines()[0].strip()}
                rows.add(row)
            show(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[MODEL])
    parser.add_argument("--text", default="stdlib", help="a source as for lowbit quantize; a .txt file is cut in two")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--windows", type=int, default=64, help="evaluation windows")
    parser.add_argument("--json", type=Path, help="keep the rows here; rows that are there are not measured again")
    options = parser.parse_args()
    rows = Rows(options.json)
    with tempfile.TemporaryDirectory() as folder:
        texts = split(options.text, Path(folder))
        for model in options.models:
            print(f"\n{model.name}: {options.samples} calibration windows, torch on {torch.get_num_threads()} threads")
            print(f"{'recipe':<28}{'bits':>5}{'bits/weight':>13}{'KL':>10}{'+-':>9}{'perplexity':>12}{'seconds':>9}")
            measured(rows, model, texts, options)
            best = front([row for row in rows.found if row["model"] == model.name and "kl" in row])
            print("on the front: " + ", ".join(f"{row['recipe']} at {row['bits_per_weight']:.2f}" for row in best))


if __name__ == "__main__":
    main()
