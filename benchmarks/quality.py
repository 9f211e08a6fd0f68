"""How good is a model after each recipe, at its true bits per weight?

    python benchmarks/quality.py [MODEL ...] [--text SOURCE] [--bits 2 3 4] [--only trellis] [--json out.json]

Each recipe quantizes each model at each width, with the same calibration windows, and the checkpoint is measured on
held-out text against the original; a recipe that does not fit a model is left out, with the reason. Reported: bits per
weight over the quantized layers with everything stored for them, KL(original || quantized) in nats a token with its
standard error, perplexity, and seconds. A .txt file has no held-out part of its own: its last tenth is cut off for
evaluation.
"""

import argparse
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
from lowbit.recipes import make_recipe

GROUPS = {"act_order": True, "static_groups": True, "range": "mse"}
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("rtn", {"range": "mse"}),
    "optq row": ("optq", GROUPS),
    "optq g128": ("optq", GROUPS | {"group_size": 128}),
    "quip": ("quip", {}),
    "quip_sharp": ("quip_sharp", {}),
    "qtip": ("qtip", {}),
    "qtip hyb": ("qtip", {"values": "hyb"}),
    "exl3": ("exl3", {}),
    "trellis": ("trellis", {}),
    "trellis one scale": ("trellis", {"scales": "tensor"}),
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[MODEL])
    parser.add_argument("--text", default="stdlib", help="a source as for lowbit quantize; a .txt file is cut in two")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--windows", type=int, default=64, help="evaluation windows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        texts = split(options.text, Path(folder))
        for model in options.models:
            print(f"\n{model.name}: {options.samples} calibration windows, torch on {torch.get_num_threads()} threads")
            print(f"{'recipe':<20}{'bits':>5}{'bits/weight':>13}{'KL':>10}{'+-':>9}{'perplexity':>12}{'seconds':>9}")
            for bits in options.bits:
                for label in options.only:
                    name, settings = CONTENDERS[label]
                    recipe = make_recipe(name, settings | {"bits": bits})
                    try:
                        row = measure(model, recipe, texts, options.samples, options.windows)
                    except BadRequest as error:
                        print(f"{label:<20}{bits:>5}  left out: {str(error).splitlines()[-1].strip()}", flush=True)
                        continue
                    rows.append({"model": model.name, "recipe": label, "bits": bits, **row})
                    print(
                        f"{label:<20}{bits:>5}{row['bits_per_weight']:>13.3f}{row['kl']:>10.5f}{row['kl_error']:>9.5f}"
                        f"{row['perplexity']:>12.4f}{row['seconds']:>9.1f}",
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps({"text": options.text, "samples": options.samples, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
