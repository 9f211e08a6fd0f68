"""One model, its calibration windows, bits and groups, through other tools and through lowbit; one evaluator for all.

    bash benchmarks/peers/environment.sh brevitas .venv-brevitas
    python benchmarks/peers.py [MODEL] --peer brevitas=.venv-brevitas/bin/python --peer gptqmodel=... [--bits 2 3 4]

Each tool runs benchmarks/peers/NAME_run.py in an environment of its own and hands back plain weights; one that is not
given is left out. lowbit measures them all: KL(original || quantized) in nats a token on held-out windows, and how far
it lies above that of lowbit's recipe for the same method (below zero: the peer is better), both with the standard error
of windows; perplexity; bits per weight of codes, scales and zero points, and in brackets what the tool's own file
spends; seconds of quantizing and saving; peak memory; bytes of the file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowbit import Recipe, recipes
from lowbit.cli.demo import MODEL
from lowbit.evaluation.records import over_windows
from lowbit.evaluation.tokens import measure_tokens
from lowbit.pipeline.text import calibration_windows, evaluation_windows, read_texts, token_stream
from lowbit.recipes import to_toml
from lowbit.rounding import Ldlq, MagR
from lowbit.statistics import CrossMoment

HERE = Path(__file__).resolve().parent / "peers"
STATIC = {"act_order": True, "static_groups": True}


@dataclass(frozen=True)
class Grid:
    """What all sides are asked for: integers of `bits` bits with a scale for `group_size` columns."""

    bits: int
    group_size: int
    symmetric: bool

    def shared(self) -> dict[str, Any]:
        return {"bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric}


def magr_optq(grid: Grid) -> Recipe:
    shrunk = MagR(Ldlq(), 0.005, grid.group_size)
    return replace(recipes.optq(**grid.shared(), **STATIC), name="magr", rounder=shrunk)


OURS: dict[str, Callable[[Grid], Recipe]] = {
    "rtn": lambda grid: recipes.rtn(**grid.shared()),
    "rtn searched": lambda grid: recipes.rtn(**grid.shared(), range="mse"),
    "gptq": lambda grid: recipes.optq(**grid.shared()),
    "gptq act-order": lambda grid: recipes.optq(**grid.shared(), **STATIC),
    "gptq searched": lambda grid: recipes.optq(**grid.shared(), **STATIC, range="hessian"),
    "gpfq": lambda grid: replace(recipes.gpfq(**grid.shared()), statistic=CrossMoment()),
    "qronos": lambda grid: recipes.qronos(**grid.shared()),
    "qronos searched": lambda grid: recipes.qronos(**grid.shared(), range="hessian"),
    "magr+gptq": magr_optq,
    "magr+qronos": lambda grid: replace(magr_optq(grid), statistic=CrossMoment()),
    "beam": lambda grid: recipes.beam(grid.bits, grid.group_size),
    "integers": lambda grid: recipes.integers(**grid.shared()),
    "trellis": lambda grid: recipes.trellis(grid.bits),
}


@dataclass(frozen=True)
class Contestant:
    """One run of one side. against: lowbit's recipe for the same method; "" where it has none or is one."""

    side: str
    method: str
    against: str = ""
    bits: Sequence[int] = (2, 3, 4)
    settings: dict[str, Any] = field(default_factory=dict)


PEERS = (
    Contestant("brevitas", "rtn", "rtn"),
    Contestant("brevitas", "gptq", "gptq act-order"),
    Contestant("brevitas", "gpfq", "gpfq"),
    Contestant("brevitas", "qronos", "qronos"),
    Contestant("brevitas", "magr+gptq", "magr+gptq"),
    Contestant("brevitas", "magr+qronos", "magr+qronos"),
    Contestant("gptqmodel", "gptq", "gptq", settings={"damping": 0.01}),
    Contestant("gptqmodel", "gptq by group", "gptq act-order", settings={"damping": 0.01, "act_group_aware": True}),
    Contestant("llmcompressor", "rtn", "rtn"),
    Contestant("llmcompressor", "gptq", "gptq act-order"),
    Contestant("autoround", "autoround", settings={"iterations": 200}),
    Contestant("hqq", "hqq", "rtn searched"),
    Contestant("quanto", "rtn g128", "rtn", bits=(2, 4)),
    Contestant("torchao", "rtn", "rtn"),
)


def write_windows(model: Path, text: str, counts: tuple[int, int], length: int, work: Path) -> None:
    """WORK/windows.safetensors: counts are of calibration and of evaluation windows, of `length` tokens each."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    train = token_stream(tokenizer, read_texts(text), vocabulary, 4 * counts[0] * length)
    held_out = token_stream(tokenizer, read_texts(text, "held-out"), vocabulary)
    windows = {
        "calibration": calibration_windows(train, counts[0], length, seed=0),
        "evaluation": evaluation_windows(held_out, length)[: counts[1]].clone(),
    }
    save_file(windows, work / "windows.safetensors")


def quantized(contestant: Contestant, python: str, grid: Grid, threads: int, work: Path) -> dict[str, Any]:
    """What the contestant measured of itself, and `weights` by layer; {"failed": why} where it gave none."""
    settings = grid.shared() | {"method": contestant.method, "threads": threads} | contestant.settings
    if contestant.side == "lowbit":
        settings["recipe"] = to_toml(OURS[contestant.method](grid))
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder)
        (own / "settings.json").write_text(json.dumps(settings))
        for shared in ("model", "windows.safetensors"):
            (own / shared).symlink_to(work / shared)
        command = [python, HERE / f"{contestant.side}_run.py", "weights", own]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=own, env=environment)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            sys.stderr.write(done.stderr[-3000:])
            return {"failed": (done.stderr.strip().splitlines() or ["it printed no result"])[-1]}
        return json.loads(lines[-1].removeprefix("RESULT ")) | {"weights": load_file(own / "weights.safetensors")}


class Judge:
    """The original beside a model whose weights are replaced by each contestant's."""

    def __init__(self, work: Path) -> None:
        self.original = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
        self.model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
        self.windows = load_file(work / "windows.safetensors")["evaluation"]
        modules = dict(self.model.named_modules())
        self.layers = {n for n, m in modules.items() if isinstance(m, torch.nn.Linear) and ".layers." in n}

    @torch.no_grad()
    def measure(self, weights: dict[str, Tensor]) -> tuple[dict[str, float], Tensor]:
        """What is reported, and KL per window and token."""
        if weights.keys() != self.layers:
            raise SystemExit(f"Not the same layers: {sorted(weights.keys() ^ self.layers)[:4]}")
        for name, weight in weights.items():
            self.model.get_submodule(name).weight.copy_(weight)
        found = measure_tokens(self.model, self.windows, self.original)
        assert found.kl is not None
        assert found.agrees is not None
        kl = over_windows(found.kl)
        measured = {
            "kl": kl.mean,
            "kl_error": kl.error or 0.0,
            "perplexity": float(found.nats.mean().exp()),
            "agreement": float(found.agrees.double().mean()),
        }
        return measured, found.kl


HEAD = (
    f"{'side':<14}{'method':<16}{'bits/weight':>12}{'(file)':>8}{'KL':>9}{'+-':>8}{'- lowbit':>10}{'+-':>8}"
    f"{'perplexity':>11}{'seconds':>8}{'MB peak':>8}{'MB file':>8}"
)


def line(row: dict[str, Any]) -> str:
    def number(key: str, width: int, places: int, scale: float = 1.0) -> str:
        return f"{row[key] * scale:>{width}.{places}f}" if key in row else f"{'-':>{width}}"

    return (
        f"{row['side']:<14}{row['method']:<16}{number('bits_per_weight', 12, 3)}{number('stored_bits', 8, 3)}"
        f"{number('kl', 9, 5)}{number('kl_error', 8, 5)}{number('difference', 10, 5)}{number('difference_error', 8, 5)}"
        f"{number('perplexity', 11, 3)}{number('seconds', 8, 1)}{number('peak_bytes', 8, 0, 1e-6)}"
        f"{number('file_bytes', 8, 2, 1e-6)}"
    )


def compete(grid: Grid, pythons: dict[str, str], chosen: Sequence[Contestant], threads: int, work: Path) -> list[dict]:
    """One table: lowbit's recipes first, since the others are compared with them."""
    judge, ours, rows = Judge(work), {}, []
    print(f"\n{grid.bits} bits, groups of {grid.group_size}{', symmetric' if grid.symmetric else ''}\n{HEAD}")
    for contestant in chosen:
        if grid.bits not in contestant.bits:
            print(f"{contestant.side:<14}{contestant.method:<16}  has no {grid.bits} bits", flush=True)
            continue
        found = quantized(contestant, pythons[contestant.side], grid, threads, work)
        row = {"side": contestant.side, "method": contestant.method, **grid.shared()}
        if "failed" in found:
            print(f"{contestant.side:<14}{contestant.method:<16}  failed: {found['failed']}", flush=True)
            rows.append(row | found)
            continue
        measured, kl = judge.measure(found.pop("weights"))
        row |= found | measured
        if contestant.side == "lowbit":
            ours[contestant.method] = kl
        elif contestant.against in ours:
            difference = over_windows(kl - ours[contestant.against])
            row |= {"against": contestant.against, "difference": difference.mean}
            row |= {"difference_error": difference.error or 0.0}
        rows.append(row)
        print(line(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="may be given many times")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="of these names alone, on every side")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--text", default="stdlib", help="a source as for lowbit quantize")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--windows", type=int, default=48, help="evaluation windows")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pythons = {name: str(Path(path).absolute()) for name, path in (given.split("=", 1) for given in options.peer)}
    pythons["lowbit"] = sys.executable
    for absent in sorted({peer.side for peer in PEERS} - pythons.keys()):
        print(f"{absent}: left out, no --peer {absent}=PYTHON was given")
    wanted = (*(Contestant("lowbit", name) for name in OURS), *(peer for peer in PEERS if peer.side in pythons))
    chosen = [one for one in wanted if not options.only or one.method in options.only]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "model").symlink_to(options.model.resolve())
        write_windows(options.model, options.text, (options.samples, options.windows), options.length, work)
        for bits in options.bits:
            grid = Grid(bits, options.group_size, options.symmetric)
            rows += compete(grid, pythons, chosen, options.threads, work)
    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        settings.pop("json"), settings.pop("peer")
        options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
