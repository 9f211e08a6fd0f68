"""What does the shape of a trellis tile do to the loss? Feedback between inputs inside a tile is lost.

    python benchmarks/tiles.py MODEL [MODEL ...] [--text SOURCE] [--bits 2] [--state-bits 16] [--every 1] [--json F]

Every linear layer (or every n-th) of each model, its Hessian from 64 calibration windows of the original model, is
rotated once and rounded by LDLQ with the same trellis in tiles of 256 x 1, 128 x 2, 64 x 4, 32 x 8 and 16 x 16 weights,
scales refitted; tiles narrower than 16 are settled column by column. Reported: proxy loss over that of 16 x 16, bits of
a weight in codes, and what feedback alone could do: the ratio that follows from H if errors were equally large. The
geometric means are over layers; `full` are those where every tile fits.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lowbit.cli.demo import MODEL
from lowbit.codes import BitshiftTrellis, Levelled, TailBiting
from lowbit.core.fields import bits_per_weight
from lowbit.core.linalg import unit_upper_factor
from lowbit.core.problem import LayerProblem
from lowbit.core.random import stream
from lowbit.pipeline.architecture import find_blocks, weight_of
from lowbit.pipeline.text import calibration_windows, read_texts, token_stream
from lowbit.rounding import Ldlq, RefittedScales
from lowbit.statistics import SecondMoment
from lowbit.transforms import RandomizedHadamard

TILES = ((256, 1), (128, 2), (64, 4), (32, 8), (16, 16))
BASELINE = (16, 16)
WINDOWS = 64


def layer_problems(folder: Path, text: str, every: int) -> Iterator[tuple[str, LayerProblem]]:
    """The layers of a model with the second moments of their inputs in the original model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers = [pair for block in find_blocks(model, model.config.num_hidden_layers) for pair in block.linears()][::every]
    statistic, states = SecondMoment(), {}
    for name, module in layers:
        states[name] = statistic.init(weight_of(module).shape[1])

        def see(_, inputs, name=name):
            states[name] = statistic.update(states[name], {"inputs": inputs[0].flatten(0, -2)})

        module.register_forward_pre_hook(see)
    with torch.no_grad():
        for row in _windows(model, folder, text):
            model(row[None])
    for name, module in layers:
        yield name, statistic.problem(states[name], weight_of(module))[0]


def _windows(model: PreTrainedModel, folder: Path, text: str) -> torch.Tensor:
    length = min(512, model.config.max_position_embeddings)
    tokens = token_stream(AutoTokenizer.from_pretrained(folder), read_texts(text), model.config.vocab_size, 10**6)
    return calibration_windows(tokens, WINDOWS, length, seed=0)


def measure(rotated: LayerProblem, bits: int, state_bits: int) -> dict[str, dict[str, float]]:
    found = {}
    for tile in TILES:
        trellis = BitshiftTrellis(state_bits, bits, 1, tile, "mul1", "tensor")
        code = Levelled(TailBiting(trellis, joint=None if tile == BASELINE else 1)).at(rotated.shape)
        rounded = RefittedScales(Ldlq()).round(rotated, code)
        found[f"{tile[0]} x {tile[1]}"] = {
            "loss": rotated.relative_loss(rounded.w_hat),
            "bits": bits_per_weight(code.fields(rotated.shape), rotated.shape),
        }
    return found


def feedback_alone(rotated: LayerProblem) -> float:
    """The loss with all feedback over that without any inside 16 columns, were errors equally large in both.

    With H = A diag(d) A^T the one is sum_j d_j, the other sum_j d_j |A_tile,j|^2.
    """
    factor = unit_upper_factor(rotated.hessian, 0.01)
    inside = torch.block_diag(*(torch.ones(len(part), len(part)) for part in factor.diagonal.split(BASELINE[1])))
    blind = factor.diagonal * (factor.unit_upper * inside).square().sum(0)
    return float(factor.diagonal.sum() / blind.sum())


def means(rows: list[dict], full_only: bool) -> dict[str, float]:
    """Geometric mean over layers of each tile's loss relative to the baseline's; full_only: where all tiles fit."""
    chosen = [row["tiles"] for row in rows if not full_only or row["shape"][0] % TILES[0][0] == 0]
    baseline = f"{BASELINE[0]} x {BASELINE[1]}"
    logs = {
        tile: [math.log(found[tile]["loss"] / found[baseline]["loss"]) for found in chosen] for tile in rows[0]["tiles"]
    }
    logs["feedback alone"] = [math.log(row["feedback"]) for row in rows if row["tiles"] in chosen]
    return {tile: math.exp(sum(values) / len(values)) for tile, values in logs.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[MODEL])
    parser.add_argument("--text", default="stdlib", help="calibration text, as for lowbit quantize")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--state-bits", type=int, default=16)
    parser.add_argument("--every", type=int, default=1, help="only each n-th layer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document = {"bits": options.bits, "state_bits": options.state_bits, "text": options.text, "models": {}}
    for folder in options.models:
        rows = []
        for name, problem in layer_problems(folder, options.text, options.every):
            rotated = RandomizedHadamard().fit(problem, stream(0, "tiles")).forward(problem)
            tiles = measure(rotated, options.bits, options.state_bits)
            rows.append({"layer": name, "shape": problem.shape, "tiles": tiles, "feedback": feedback_alone(rotated)})
            losses = "  ".join(f"{tile} {found['loss']:.4f}" for tile, found in rows[-1]["tiles"].items())
            print(f"{name:<36}{problem.shape!s:<12}{losses}", flush=True)
        document["models"][folder.name] = {"layers": rows, "all": means(rows, False), "full": means(rows, True)}
        for which in ("all", "full"):
            ratios = document["models"][folder.name][which]
            print(f"{folder.name}, {which}: " + "  ".join(f"{tile} {ratio:.3f}" for tile, ratio in ratios.items()))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
