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
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

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
PROMPT = 'def read_lines(path):\n    """Read'
_GROUP = {"group_size": 64, "range": "mse"}
_RECIPES: dict[str, tuple[str, dict[str, object]]] = {
    "rtn g64": ("rtn", _GROUP),
    "optq": ("optq", {}),
    "optq g64": ("optq", _GROUP | {"act_order": True, "static_groups": True}),
    "integers g64": ("integers", {"group_size": 64}),
    "trellis": ("trellis", {"scales": "tensor"}),
}
# A trellis and lowbit's own integers take half a minute each here, the others seconds.
_CHOICES = [(bits, label) for bits in (4, 3, 2) for label in _RECIPES]


def run_demo(out: Path) -> None:
    """Write one folder a recipe, `report.html` and `pareto.png` into `out`, and print the comparison."""
    from lowbit.report.figures import pareto_figure  # matplotlib takes a second to import

    console = Console()
    rows: list[dict[str, Any]] = []
    original = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    for bits, label in _CHOICES:
        name, settings = _RECIPES[label]
        folder = _folder(out, label, bits)
        shutil.rmtree(folder, ignore_errors=True)
        row = _measured(folder, original, make_recipe(name, settings | {"bits": bits}))
        rows.append({"recipe": label, "bits": bits, **row})
    best = min((row for row in rows if row["bits"] == 2), key=lambda row: row["kl"])
    texts = {
        "original": _written(original),
        f"{best['recipe']}, 2 bits": _written(load(_folder(out, best["recipe"], 2), dtype=torch.float32)),
    }
    demo_report(rows, texts, out / "report.html")
    pareto_figure(rows, out / "pareto.png")
    console.print(comparison_table(rows))
    for label, text in texts.items():
        console.rule(label)
        console.print(text, markup=False, highlight=False)
    console.print(f"\nReport: {out / 'report.html'}")


def _folder(out: Path, label: str, bits: int) -> Path:
    return out / f"{label.replace(' ', '-')}-{bits}bit"


def _measured(folder: Path, original: PreTrainedModel, recipe: Recipe) -> dict[str, Any]:
    started = time.perf_counter()
    with progress_bars() as progress:
        record = api.quantize(MODEL, folder, recipe, calibration=Calibration(samples=32), progress=progress)
    seconds = time.perf_counter() - started
    measures = evaluate(folder, reference=original, windows=24)
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
    """What the model writes after the prompt; drawn, for small models that always take the likeliest token loop."""
    torch.manual_seed(0)
    return write_on(model, AutoTokenizer.from_pretrained(MODEL), PROMPT, max_new_tokens=96, do_sample=True, top_k=4)


def write_on(model: Any, tokenizer: Any, prompt: str, **settings: Any) -> str:
    """`prompt` and what the model writes after it; settings: of transformers' `generate`."""
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **settings)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))
