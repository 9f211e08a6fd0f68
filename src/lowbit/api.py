"""lowbit in Python: the same things as on the command line."""

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit import exchange
from lowbit.core.recipe import Recipe
from lowbit.evaluation import evaluate
from lowbit.evaluation.evaluate import held_out_windows, open_model
from lowbit.evaluation.size import byte_budget
from lowbit.exchange import gguf_file, import_folder, import_gguf
from lowbit.formats.files import write_json_atomically
from lowbit.formats.shards import read_json
from lowbit.integrations.hub import resolve_folder
from lowbit.pipeline import quantize as pipeline
from lowbit.pipeline.drive import Progress
from lowbit.pipeline.plan import Assignment, Plan
from lowbit.pipeline.quantize import Calibration, Options
from lowbit.recipes import make_recipe
from lowbit.report import write_report
from lowbit.report.card import write_card
from lowbit.report.citations import citations
from lowbit.version import VERSION


def quantize(
    model: str | Path,
    out: str | Path,
    recipe: str | Recipe = "optq",
    *,
    overrides: Mapping[str, Recipe] | None = None,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
    calibration: Calibration = Calibration(),
    options: Options = Options(),
    progress: Progress = pipeline.silent,
    command: str = "",
) -> dict[str, Any]:
    """Quantize a Hugging Face causal language model into a folder that transformers loads.

        lowbit.quantize("Qwen/Qwen3-0.6B", "out", lowbit.recipes.optq(bits=3, group_size=128))

    Args:
        model: a folder or a name on the hub.
        out: a folder that is empty or does not exist (or holds the run to resume).
        recipe: a recipe, or the name of one with its default settings.
        overrides: layer name pattern -> recipe; the last that matches wins.
        targets, ignore: layer name patterns to quantize alone, to leave alone (see pipeline.plan.Assignment).
        calibration: the text the statistics see. options: resuming, strictness, memory.
        progress: called with what is done, how much, of how much.
        command: what the report says to do the same again; "" for this call.

    Returns the run's record: layers with losses and outcomes, sizes, calibration, versions; also in out/report.json
    and drawn in out/report.html. Raises BadRequest where the request is wrong, LowbitError where the work fails.
    """
    chosen = assignment(recipe, overrides, targets, ignore)
    if not command:
        again = replace(options, resume=False)
        said = {"overrides": overrides, "targets": targets, "ignore": ignore, "calibration": calibration}
        given = said if again == Options() else said | {"options": again}
        command = _call("quantize", str(model), str(out), recipe, **given)
    finish = functools.partial(_write_report, command)
    return pipeline.run(str(model), Path(out), chosen, calibration, options, progress, finish)


def _write_report(command: str, record: dict[str, Any], folder: Path) -> None:
    """Write a run's report into its finished folder, with what only that shows."""
    recipes = [record["assignment"]["recipe"], *(data for _, data in record["assignment"]["overrides"])]
    record["size"]["parts"] = byte_budget(folder)
    record["citations"] = citations(recipes)
    record["command"] = command
    write_report(record, folder)


def plan(
    model: str | Path,
    recipe: str | Recipe = "optq",
    *,
    overrides: Mapping[str, Recipe] | None = None,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
    calibration: Calibration = Calibration(),
) -> Plan:
    """What `quantize` would do: layers, sizes, memory, time. Reads headers only."""
    return pipeline.plan(str(model), assignment(recipe, overrides, targets, ignore), calibration)


def export(
    folder: str | Path,
    out: str | Path,
    format: str,
    *,
    requantize: int | None = None,
    text: str = "stdlib",
    windows: int | None = 32,
) -> dict[str, Any]:
    """Write a lowbit checkpoint in another tool's format, with exactly the same codes.

        lowbit.export("out", "out-gptq", "gptq")
        lowbit.export("out", "out-gguf", "gguf", requantize=4)

    Args:
        folder: what `quantize` or `import_` wrote. out: a folder that is empty or does not exist.
        format: gptq, gptq_v2, compressed-tensors, awq, exl3 or gguf; docs/formats.md says what each can hold.
        requantize: bits to round layers to, a second time, that the format cannot hold; None refuses them.
        text, windows: what the cost of that is measured on, as in `evaluate`.

    Returns format, layers, requantized (how many of them), bytes and bits_per_weight of what was written; where layers
    were rounded again also measures (`Measures.to_dict`) beside `folder`. Raises BadRequest, leaving nothing behind,
    where the format cannot hold a layer exactly, naming those that can.
    """
    out, before = Path(out), None
    if requantize is not None:
        before = open_model(folder)
        cut = held_out_windows(before, text, None)[:windows]
    done = exchange.export(Path(folder), out, format, requantize)
    path = Path(folder) / "report.json"
    record = read_json(path) if path.is_file() else _unknown_origin(folder)
    command = ["lowbit", "export", str(folder), "--format", format, "--out", str(out)]
    if before is not None and done["requantized"]:
        command += ["--requantize", str(requantize), "--text", text]
        done["measures"] = evaluate(out, text=cut, reference=before).to_dict() | {"text": text}
        record = {**record, "measures": done["measures"], "requantized": done["requantized"]}
    commands = [*record.get("command", "").splitlines(), shlex.join(command)]
    write_card(out, _with_size(record, done) | {"command": "\n".join(commands)}, format)
    return done


def import_(model: str | Path, out: str | Path) -> dict[str, Any]:
    """Read another tool's GPTQ, AWQ, compressed-tensors, EXL3 or GGUF checkpoint as a lowbit one, with the same codes.

    Args:
        model: a folder, a name on the hub or a GGUF file. out: a folder that is empty or does not exist.

    Returns format, layers, bytes and bits_per_weight of what was written. Raises BadRequest, leaving nothing behind,
    where the checkpoint is not what it claims to be.
    """
    file, out = gguf_file(Path(model).expanduser()), Path(out)
    done = import_folder(resolve_folder(str(model)), out) if file is None else import_gguf(file, out)
    command = shlex.join(["lowbit", "import", str(model), "--out", str(out)])
    record = _with_size(_unknown_origin(model), done) | {"imported": done["format"], "command": command, "layers": []}
    write_json_atomically(out / "report.json", record)
    write_card(out, record)
    return done


def _call(function: str, *arguments: Any, **given: Any) -> str:
    """A call of lowbit's in Python, without the keywords that have nothing to say."""
    said = [*map(repr, arguments), *(f"{name}={value!r}" for name, value in given.items() if value)]
    return f"lowbit.{function}({', '.join(said)})"


def _unknown_origin(folder: str | Path) -> dict[str, Any]:
    """The record of a model that another tool quantized."""
    return {"lowbit_version": VERSION, "model": {"source": str(folder)}, "size": {}}


def _with_size(record: Mapping[str, Any], done: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose sizes are those of the folder that was just written."""
    size = record["size"] | {"bits_per_weight": done["bits_per_weight"]}
    return {**record, "size": size | ({"after": done["bytes"]} if "before" in size else {})}


def assignment(
    recipe: str | Recipe,
    overrides: Mapping[str, Recipe] | None = None,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Assignment:
    """Which layer gets which recipe."""
    chosen = make_recipe(recipe) if isinstance(recipe, str) else recipe
    return Assignment(chosen, tuple((overrides or {}).items()), tuple(targets), tuple(ignore))
