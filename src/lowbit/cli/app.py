"""The commands. Each parses what was typed, calls the library and shows the answer."""

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from lowbit import api
from lowbit.cli.demo import run_demo, write_on
from lowbit.cli.doctor import doctor
from lowbit.cli.exchange import export, import_
from lowbit.cli.progress import progress_bars
from lowbit.cli.reports import compare, report
from lowbit.cli.requests import overrides_of, parse_settings, recipe_of
from lowbit.core.errors import BadRequest
from lowbit.core.fields import bits_per_weight
from lowbit.core.recipe import Recipe
from lowbit.evaluation import evaluate
from lowbit.formats.legality import check_checkpoint, read_quantization_config
from lowbit.formats.shards import read_json
from lowbit.integrations.loading import load
from lowbit.pipeline.plan import Plan
from lowbit.pipeline.quantize import Calibration, Options
from lowbit.recipes import CATALOGUE, from_dict, to_dict, to_toml
from lowbit.report import numbers
from lowbit.report.grid import DISTANCE, RELATIVE_LOSS, worst_first
from lowbit.report.table import layers_table, limits_table, measures_table

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

ModelArgument = Annotated[str, typer.Argument(help="A model folder or a name on the hub.", metavar="MODEL")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A recipe's name (see `lowbit recipes`) or a .toml file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A setting of the recipe, such as bits=3, or one of its parts, such as rounder=Beam(16)."
    ),
]
OverrideOption = Annotated[
    list[str] | None, typer.Option("--override", help="PATTERN:bits=4 for the layers that match, or PATTERN:file.toml.")
]
TargetsOption = Annotated[list[str] | None, typer.Option("--targets", help="Quantize only layers that match.")]
IgnoreOption = Annotated[list[str] | None, typer.Option("--ignore", help="Leave layers that match as they are.")]
CalibrationOption = Annotated[
    str, typer.Option("--calibration", help="`stdlib`, a .txt/.jsonl/.parquet file, or a data set on the hub.")
]
SamplesOption = Annotated[int, typer.Option("--samples", help="Calibration windows.")]
LengthOption = Annotated[int | None, typer.Option("--sequence-length", help="Tokens a window; by default up to 2048.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Chooses windows and everything random in a recipe.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


@app.command()
def quantize(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder to write; empty or not there yet.")],
    recipe: RecipeOption = "optq",
    set_: SetOption = None,
    override: OverrideOption = None,
    targets: TargetsOption = None,
    ignore: IgnoreOption = None,
    calibration: CalibrationOption = "stdlib",
    samples: SamplesOption = 128,
    sequence_length: LengthOption = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where anything did not go as asked.")] = False,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Use a Ray cluster: `auto`, or HOST:PORT of its head.")
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", help="Where windows run: cpu, cuda or cuda:1. Layers are solved on the processor."),
    ] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Quantize MODEL into a folder that transformers loads after `import lowbit`."""
    settings = parse_settings(set_ or [])
    with progress_bars() as progress:
        record = api.quantize(
            model,
            out,
            recipe_of(recipe, settings),
            overrides=overrides_of(recipe, settings, override or []),
            targets=targets or (),
            ignore=ignore or (),
            calibration=Calibration(calibration, samples, sequence_length, seed),
            options=Options(resume, strict, cluster=cluster, device=device),
            progress=progress,
        )
    if as_json:
        print(json.dumps(record))
        return
    console = Console()
    size, outcomes = record["size"], [outcome for layer in record["layers"] for outcome in layer["outcomes"]]
    for outcome, count in Counter((o["kind"], o["remedy"]) for o in outcomes).items():
        console.print(f"{count} layers: {outcome[0]}. {outcome[1]}", style="yellow", highlight=False)
    console.print("The five layers with the largest relative loss:")
    console.print(layers_table(worst_first(record["layers"], RELATIVE_LOSS)[:5]))
    console.print(
        f"{numbers.size(size['before'])} -> {numbers.size(size['after'])}, "
        f"{size['bits_per_weight']:.3f} bits per quantized weight, {size['bits_per_parameter']:.3f} per parameter, "
        f"in {numbers.duration(record['seconds']['total'])}.\n",
        highlight=False,
    )
    console.print(
        f"Report: {out / 'report.html'}\nMeasure it: lowbit report {out}\n"
        f"Try it: lowbit generate {out} 'Once upon a time'",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def plan(
    model: ModelArgument,
    recipe: RecipeOption = "optq",
    set_: SetOption = None,
    override: OverrideOption = None,
    targets: TargetsOption = None,
    ignore: IgnoreOption = None,
    samples: SamplesOption = 128,
    sequence_length: LengthOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `quantize` would do: every layer, sizes, time and memory. Nothing is run."""
    settings = parse_settings(set_ or [])
    planned = api.plan(
        model,
        recipe_of(recipe, settings),
        overrides=overrides_of(recipe, settings, override or []),
        targets=targets or (),
        ignore=ignore or (),
        calibration=Calibration(samples=samples, length=sequence_length),
    )
    if as_json:
        print(json.dumps(_plan_data(planned)))
    else:
        _show_plan(planned, Console())


@app.command("eval")
def evaluate_model(
    model: ModelArgument,
    reference: Annotated[str | None, typer.Option("--reference", help="The original, for KL and agreement.")] = None,
    text: Annotated[str, typer.Option("--text", help="A source as for --calibration.")] = "stdlib",
    sequence_length: LengthOption = None,
    windows: Annotated[int | None, typer.Option("--windows", help="Use only the first so many windows.")] = None,
    tasks: Annotated[str, typer.Option("--tasks", help="lm-eval tasks, by commas.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Measure MODEL: perplexity, KL and agreement to --reference, size, tasks."""
    names = [task for task in tasks.split(",") if task]
    with progress_bars() as bars:
        measures = evaluate(
            model,
            text=text,
            reference=reference,
            length=sequence_length,
            windows=windows,
            tasks=names,
            progress=lambda done, total: bars("evaluating windows", done, total),
        )
    if as_json:
        print(json.dumps(measures.to_dict()))
    else:
        Console().print(measures_table(measures.to_dict()))


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="The text to go on from.")],
    tokens: Annotated[int, typer.Option("--tokens", help="How many tokens to write.")] = 64,
) -> None:
    """Let a quantized model go on from PROMPT, greedily."""
    loaded = load(Path(model), dtype=torch.float32)
    if not prompt:
        raise BadRequest("The prompt is empty. Give at least one word.")
    print(write_on(loaded, AutoTokenizer.from_pretrained(model), prompt, max_new_tokens=tokens, do_sample=False))


@app.command("inspect")
def inspect_folder(
    folder: Annotated[Path, typer.Argument(help="A folder that `lowbit quantize` wrote.", metavar="DIR")],
    as_json: JsonOption = False,
) -> None:
    """Check a quantized folder against the format and show what it holds."""
    parsed = read_quantization_config(folder)
    check_checkpoint(folder, from_dict)
    path = folder / "report.json"
    record = read_json(path) if path.is_file() else None
    if as_json:
        layers = {name: {"recipe": entry.recipe, "shape": entry.shape} for name, entry in parsed.layers.items()}
        found = {"lowbit_version": parsed.lowbit_version, "recipes": list(parsed.recipes), "layers": layers}
        print(json.dumps(found | {"report": record}))
        return
    console = Console()
    console.print(
        f"{folder}: a legal checkpoint of {len(parsed.layers)} quantized layers, lowbit {parsed.lowbit_version}."
    )
    for data in parsed.recipes:
        console.print(to_toml(from_dict(data)), markup=False)
    if record is not None and record["layers"]:
        console.print("Layers by relative loss, worst first:")
        console.print(layers_table(worst_first(record["layers"], RELATIVE_LOSS)))
        console.print("The five layers farthest from the least loss that their bits allow:")
        console.print(limits_table(worst_first(record["layers"], DISTANCE)[:5]))


app.command()(report)
app.command()(export)
app.command("import")(import_)
app.command()(compare)
app.command()(doctor)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, in full.", metavar="[NAME]")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes, or show one: what it is, its paper, its settings, its parts, its bits per weight."""
    chosen = {name: recipe_of(name, {})} if name else {known: recipe_of(known, {}) for known in CATALOGUE}
    if as_json:
        print(json.dumps([_recipe_data(known, recipe) for known, recipe in chosen.items()]))
        return
    console = Console()
    if name:
        settings = ", ".join(f"{p.name}={p.default}" for p in inspect.signature(CATALOGUE[name]).parameters.values())
        console.print(f"{name}({settings})\n", markup=False, highlight=False)
        console.print(inspect.getdoc(CATALOGUE[name]), markup=False, highlight=False)
        console.print(f"\nAt its default settings, [4096, 4096] takes {_bits(chosen[name]):.4f} bits per weight:\n")
        console.print(to_toml(chosen[name]), markup=False)
        return
    table = Table("recipe", "what it does", "bits per weight", box=None)
    for known, recipe in chosen.items():
        table.add_row(known, _first_line(known), f"{_bits(recipe):.3f}")
    console.print(table)
    console.print("\nBits per weight at default settings for a [4096, 4096] layer. More: lowbit recipes NAME")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("out/demo"),
) -> None:
    """Quantize the model that ships with lowbit in several ways, and compare. Offline, a few minutes."""
    run_demo(out)


def _recipe_data(name: str, recipe: Recipe) -> dict[str, Any]:
    settings = {p.name: p.default for p in inspect.signature(CATALOGUE[name]).parameters.values()}
    about = inspect.getdoc(CATALOGUE[name])
    return {
        "name": name,
        "about": about,
        "settings": settings,
        "parts": to_dict(recipe),
        "bits_per_weight": _bits(recipe),
    }


def _bits(recipe: Recipe) -> float:
    return bits_per_weight(recipe.fields((4096, 4096)), (4096, 4096))


def _first_line(name: str) -> str:
    return (inspect.getdoc(CATALOGUE[name]) or "").partition("\n")[0]


def _plan_data(planned: Plan) -> dict[str, Any]:
    return {
        "layers": [
            {
                "name": layer.name,
                "shape": layer.shape,
                "recipe": layer.recipe.name,
                "bits_per_weight": layer.bits_per_weight,
                "bytes": layer.nbytes,
            }
            for layer in planned.layers
        ],
        "left_alone": [
            {"name": t.name, "shape": t.shape, "bytes": t.nbytes, "reason": t.reason} for t in planned.left_alone
        ],
        "bytes_before": planned.bytes_before,
        "bytes_after": planned.bytes_after,
        "bits_per_weight": planned.bits_per_weight,
        "bits_per_parameter": planned.bits_per_parameter,
        "memory": planned.memory,
        "seconds": planned.seconds,
    }


def _show_plan(planned: Plan, console: Console) -> None:
    table = Table("layer", "shape", "recipe", "bits per weight", "size", box=None)
    for layer in planned.layers:
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        table.add_row(layer.name, shape, layer.recipe.name, f"{layer.bits_per_weight:.3f}", numbers.size(layer.nbytes))
    console.print(table)
    alone = Table("left alone", "shape", "size", "why", box=None)
    for tensor in planned.left_alone:
        alone.add_row(tensor.name, " x ".join(map(str, tensor.shape)), numbers.size(tensor.nbytes), tensor.reason)
    console.print(alone)
    console.print(
        f"\nFound {len(planned.layers)} layers to quantize, {len(planned.left_alone)} tensors left alone.\n"
        f"Size {numbers.size(planned.bytes_before)} -> {numbers.size(planned.bytes_after)}: "
        f"{planned.bits_per_weight:.3f} bits per quantized weight, {planned.bits_per_parameter:.3f} per parameter.\n"
        f"About {numbers.duration(planned.seconds)}, {numbers.size(planned.memory)} of memory at the peak.",
        highlight=False,
    )
