"""OPTQ in lowbit against GPTQModel: the same weights, calibration and settings, in turn, in one run.

    bash benchmarks/peers/environment.sh gptqmodel .venv-gptqmodel
    python benchmarks/optq.py --peer-python .venv-gptqmodel/bin/python

Two questions: one 4096 x 4096 layer with correlated inputs (seconds from inputs to rounded weights, proxy loss in
float64), and the model that ships with lowbit from folder to folder (seconds, KL to the original on held-out text).
Prints JSON; ratios are lowbit over GPTQModel, below 1 is better. Each side runs in a process of its own; the median
over the repeats is quoted.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowbit.cli.demo import MODEL
from lowbit.core.problem import LayerProblem
from lowbit.pipeline.text import calibration_windows, evaluation_windows, read_texts, token_stream

HERE = Path(__file__).resolve().parent / "peers"


def make_layer(work: Path, size: int, tokens: int) -> None:
    """A Gaussian weight and inputs whose covariance has a decaying spectrum and a few strong channels."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(size, size, generator=generator) * torch.logspace(0, -2, size)[:, None]
    inputs = torch.randn(tokens, size, generator=generator) @ mix / size**0.5
    inputs *= 1 + 9 * (torch.rand(size, generator=generator) < 0.01)
    weight = torch.randn(size, size, generator=generator) / size**0.5
    save_file({"weight": weight, "inputs": inputs}, work / "layer.safetensors")


def make_windows(work: Path, model: Path = MODEL, samples: int = 64, length: int = 512) -> None:
    """The model and the windows that both sides get."""
    shutil.copytree(model, work / "model", dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    vocabulary = len(tokenizer)
    train = token_stream(tokenizer, read_texts("stdlib")[:200], vocabulary)
    held_out = token_stream(tokenizer, read_texts("stdlib", "held-out"), vocabulary)
    windows = {
        "calibration": calibration_windows(train, samples, length, seed=0),
        "evaluation": evaluation_windows(held_out, length)[:24].clone(),
    }
    save_file(windows, work / "windows.safetensors")


def measured(python: str, script: str, what: str, work: Path) -> dict:
    command = [python, HERE / script, what, work]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{script} {what} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def in_turn(peer_python: str, what: str, work: Path, repeats: int) -> dict:
    """Both sides, A B A B; medians and their ratios."""
    sides: dict[str, list[dict]] = {"lowbit": [], "gptqmodel": []}
    for _ in range(repeats):
        shutil.rmtree(work / "lowbit-model", ignore_errors=True)
        shutil.rmtree(work / "peer-model", ignore_errors=True)
        sides["lowbit"].append(measured(sys.executable, "lowbit_run.py", what, work))
        sides["gptqmodel"].append(measured(peer_python, "gptqmodel_run.py", what, work))
    medians = {
        side: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for side, runs in sides.items()
    }
    compared = [key for key in ("seconds", "processor_seconds", "peak_bytes") if key in medians["lowbit"]]
    ratios = {key: medians["lowbit"][key] / medians["gptqmodel"][key] for key in compared}
    return medians | {"ratio": ratios}


def proxy_losses(work: Path) -> dict[str, float]:
    data = load_file(work / "layer.safetensors")
    inputs = data["inputs"].double()
    problem = LayerProblem(data["weight"], inputs.T @ inputs / len(inputs))
    found = {
        side: problem.relative_loss(load_file(work / f"{file}-layer.safetensors")["w_hat"])
        for side, file in (("lowbit", "lowbit"), ("gptqmodel", "peer"))
    }
    return found | {"ratio": found["lowbit"] / found["gptqmodel"]}


@torch.no_grad()
def divergences(work: Path) -> dict[str, float]:
    original = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    windows = load_file(work / "windows.safetensors")["evaluation"]
    reference = torch.cat([original(input_ids=row[None]).logits for row in windows]).double().log_softmax(-1)
    found = {}
    for side, file in (("lowbit", "lowbit"), ("gptqmodel", "peer")):
        logits = load_file(work / f"{file}-logits.safetensors")["logits"].double().log_softmax(-1)
        found[side] = float((reference.exp() * (reference - logits)).sum(-1).mean())
    return found | {"ratio": found["lowbit"] / found["gptqmodel"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="Python of the environment that has GPTQModel")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=4096, help="of the square layer")
    parser.add_argument("--tokens", type=int, default=8192, help="of the layer's inputs")
    arguments = parser.parse_args()
    settings = {"symmetric": True, "damping": 0.01, "threads": arguments.threads}
    report: dict = {"threads": arguments.threads, "layer": {}, "model": {}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_layer(work, arguments.size, arguments.tokens)
        make_windows(work)
        for bits, group_size in ((4, 128), (3, 128)):
            (work / "settings.json").write_text(json.dumps(settings | {"bits": bits, "group_size": group_size}))
            found = in_turn(str(arguments.peer_python.absolute()), "layer", work, arguments.repeats)
            report["layer"][f"{bits} bits g{group_size}"] = found | {"relative_loss": proxy_losses(work)}
            found = in_turn(str(arguments.peer_python.absolute()), "model", work, arguments.repeats)
            report["model"][f"{bits} bits g{group_size}"] = found | {"kl": divergences(work)}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
