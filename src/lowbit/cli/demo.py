"""`lowbit demo`: the main job on the model that ships with lowbit, offline.

Quantizes it with several recipes at 4, 3 and 2 bits on the standard library's text, measures each against the
original on held-out modules, and lets the original and the smallest models write side by side.
"""

import shutil
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowbit import api
from lowbit.cli.progress import progress_bars
from lowbit.core.recipe import Recipe
from lowbit.evaluation import evaluate
from lowbit.integrations.loading import load
from lowbit.pipeline.quantize import Calibration
from lowbit.recipes import make_recipe
from lowbit.report import demo_report
from lowbit.report.table import comparison_table

MODEL = Path(str(files("lowbit.demo"))) / "model"
PROMPT = "def read_lines(path):\n    "
_CHOICES: list[tuple[str, dict[str, object]]] = [
    (name, {"bits": bits, "group_size": group_size, **more})
    for bits in (4, 3, 2)
    for name, group_size, more in (
        ("rtn", "row", {}),
        ("rtn", 64, {}),
        ("optq", "row", {}),
        ("optq", 64, {"act_order": True, "static_groups": True, "range": "mse"}),
    )
]


def run_demo(out: Path) -> None:
    """Write one folder a recipe and `report.html` into `out`, and print the comparison."""
    console = Console()
    rows: list[dict[str, Any]] = []
    for name, settings in _CHOICES:
        label = _label(name, settings)
        folder = out / label.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        row = _measured(folder, make_recipe(name, settings))
        rows.append({"recipe": label, "bits": settings["bits"], **row})
    smallest = min((row for row in rows if row["bits"] == 2), key=lambda row: row["kl"])
    texts = {
        "original": _written(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)),
        smallest["recipe"]: _written(load(out / smallest["recipe"].replace(" ", "-"), dtype=torch.float32)),
    }
    demo_report(rows, texts, out / "report.html")
    console.print(comparison_table(rows))
    for label, text in texts.items():
        console.rule(label)
        console.print(text, markup=False, highlight=False)
    console.print(f"\nReport: {out / 'report.html'}")


def _label(name: str, settings: dict[str, object]) -> str:
    group = settings["group_size"]
    return f"{name} {settings['bits']} bits" + ("" if group == "row" else f" g{group}")


def _measured(folder: Path, recipe: Recipe) -> dict[str, Any]:
    started = time.perf_counter()
    with progress_bars() as progress:
        record = api.quantize(MODEL, folder, recipe, calibration=Calibration(samples=32), progress=progress)
    seconds = time.perf_counter() - started
    measures = evaluate(folder, reference=MODEL, windows=24)
    assert measures.divergence is not None
    return {
        "bits_per_weight": record["size"]["bits_per_weight"],
        "bytes": record["size"]["after"],
        "perplexity": measures.perplexity.mean,
        "kl": measures.divergence.kl.mean,
        "agreement": measures.divergence.agreement.mean,
        "seconds": seconds,
    }


def _written(model: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    output = model.generate(input_ids=ids, max_new_tokens=96, do_sample=False)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))
