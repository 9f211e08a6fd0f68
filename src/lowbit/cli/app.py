"""The commands. Each parses what was typed, calls the library and shows the answer."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.doctor import doctor
from lowbit.cli.exchange import export, import_
from lowbit.cli.options import (
    CalibrationOption,
    FolderArgument,
    IgnoreOption,
    JsonOption,
    LengthOption,
    ModelArgument,
    OutOption,
    OverrideOption,
    RecipeOption,
    SamplesOption,
    SeedOption,
    SetOption,
    TargetsOption,
    TextOption,
    WindowsOption,
)
from lowbit.cli.reports import compare, report
from lowbit.version import VERSION

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"lowbit {VERSION}")
        raise typer.Exit


@app.callback()
def lowbit(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Any Hugging Face causal language model in, the most accurate low-bit model for its size out."""


@app.command()
def quantize(
    model: ModelArgument,
    out: OutOption,
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
    from lowbit import api
    from lowbit.cli.progress import progress_bars
    from lowbit.cli.requests import overrides_of, parse_settings, recipe_of
    from lowbit.cli.summary import show_run
    from lowbit.pipeline.quantize import Calibration, Options

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
            command=shlex.join(["lowbit", *sys.argv[1:]]),
        )
    if as_json:
        print(json.dumps(record))
    else:
        show_run(record, out)


@app.command()
def plan(
    model: ModelArgument,
    recipe: RecipeOption = "optq",
    set_: SetOption = None,
    override: OverrideOption = None,
    targets: TargetsOption = None,
    ignore: IgnoreOption = None,
    calibration: CalibrationOption = "stdlib",
    samples: SamplesOption = 128,
    sequence_length: LengthOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what `quantize` would do: every layer, sizes, time and memory. Nothing is run."""
    from lowbit import api
    from lowbit.cli.requests import overrides_of, parse_settings, recipe_of
    from lowbit.cli.summary import plan_data, show_plan
    from lowbit.pipeline.quantize import Calibration

    settings = parse_settings(set_ or [])
    planned = api.plan(
        model,
        recipe_of(recipe, settings),
        overrides=overrides_of(recipe, settings, override or []),
        targets=targets or (),
        ignore=ignore or (),
        calibration=Calibration(calibration, samples, sequence_length, seed),
    )
    if as_json:
        print(json.dumps(plan_data(planned)))
    else:
        show_plan(planned)


@app.command("eval")
def evaluate_model(
    model: ModelArgument,
    reference: Annotated[str | None, typer.Option("--reference", help="The original, for KL and agreement.")] = None,
    text: TextOption = "stdlib",
    sequence_length: LengthOption = None,
    windows: WindowsOption = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="MODEL computes in float32, bfloat16 or float16; --reference in float32.")
    ] = "float32",
    tasks: Annotated[str, typer.Option("--tasks", help="lm-eval tasks, by commas.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Measure MODEL: perplexity, KL and agreement to --reference, size, tasks."""
    from rich.console import Console

    from lowbit.cli.progress import progress_bars
    from lowbit.cli.requests import torch_type
    from lowbit.evaluation import evaluate
    from lowbit.report import measures_table

    names = [task for task in tasks.split(",") if task]
    with progress_bars() as bars:
        measures = evaluate(
            model,
            text=text,
            reference=reference,
            length=sequence_length,
            windows=windows,
            dtype=torch_type(dtype),
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
    import torch
    from transformers import AutoTokenizer

    from lowbit.cli.demo import write_on
    from lowbit.core.errors import require
    from lowbit.integrations.loading import load

    require(bool(prompt), "The prompt is empty. Give at least one word.")
    require(tokens >= 1, f"--tokens {tokens}: must be at least 1.")
    loaded = load(model, dtype=torch.float32)
    print(write_on(loaded, AutoTokenizer.from_pretrained(model), prompt, max_new_tokens=tokens, do_sample=False))


@app.command("inspect")
def inspect_folder(
    folder: FolderArgument,
    as_json: JsonOption = False,
) -> None:
    """Check a quantized folder against the format and show what it holds."""
    from lowbit.cli.folders import folder_data, show_folder

    if as_json:
        print(json.dumps(folder_data(folder)))
    else:
        show_folder(folder)


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
    from lowbit.cli.listing import list_recipes, recipes_data, show_recipe

    if as_json:
        print(json.dumps(recipes_data(name)))
    elif name:
        show_recipe(name)
    else:
        list_recipes()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("out/demo"),
) -> None:
    """Quantize the model that ships with lowbit in several ways, and compare. Offline, a few minutes."""
    from lowbit.cli.demo import run_demo

    run_demo(out)
