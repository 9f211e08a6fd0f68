"""How long a large model takes on so many machines, by counting: the tables and the figure of docs/scale.md.

    python tools/scale.py docs/scale.png

Times are sums of what a run does one after the other, each its operations over a measured rate or its bytes over the
network's; nothing overlaps. The driver runs on one of the machines, so that one machine sends nothing.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from lowbit.pipeline.activations import MOST_PARTS

# Of one core, measured (docs/LOG.md): float32 multiply-adds/s, and weights/s through each code.
PRODUCTS = 15e9
WEIGHTS = {"optq": 4.6e6, "trellis": 0.1e6}
CORES, NETWORK = 64, 25e9 / 8
WINDOWS, LENGTH = 128, 2048
TOKENS = WINDOWS * LENGTH
MACHINES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Shape:
    """A Llama. width: of hidden states; inner: of the MLP; kv: outputs of key and of value."""

    blocks: int
    width: int
    inner: int
    kv: int

    @property
    def stages(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The layers [N, K] of a block, by the input that they share."""
        d, inner = self.width, self.inner
        return ((d, d), (self.kv, d), (self.kv, d)), ((d, d),), ((inner, d), (inner, d)), ((d, inner),)

    @property
    def weights(self) -> int:
        return sum(n * k for stage in self.stages for n, k in stage)

    @property
    def hessians(self) -> int:
        """Numbers in the Hessians of a block: one K^2 for each input."""
        return sum(stage[0][1] ** 2 for stage in self.stages)

    @property
    def hidden(self) -> int:
        """Bytes of the hidden states of all windows."""
        return 4 * TOKENS * self.width


SHAPES = {"70B": Shape(80, 8192, 28672, 1024), "405B": Shape(126, 16384, 53248, 1024)}


@dataclass(frozen=True)
class Times:
    """Seconds of a block: running windows, solving, sending."""

    windows: float
    solving: float
    sending: float

    @property
    def total(self) -> float:
        return self.windows + self.solving + self.sending


def block_times(shape: Shape, code: str, refresh: str, machines: int) -> Times:
    """Of a block whose inputs are computed anew for each "input", or once for the "block"."""
    stages = shape.stages if refresh == "input" else (tuple(layer for stage in shape.stages for layer in stage),)
    passes = len(stages) / 2 + 1 if len(stages) > 1 else 2
    busiest = math.ceil(MOST_PARTS / min(machines, MOST_PARTS)) / MOST_PARTS
    windows = TOKENS * (passes * shape.weights + shape.hessians) * busiest / (PRODUCTS * CORES)
    solving = sum(makespan([solve_seconds(*layer, code) for layer in stage], machines) for stage in stages)
    return Times(windows, solving, bytes_sent(shape, len(stages), machines) / NETWORK)


def solve_seconds(n: int, k: int, code: str) -> float:
    """Feedback and two losses in float64, 4.5 N K^2; the factor and that of the limit, 4/3 K^3; the code."""
    return (4.5 * n * k**2 + 4 / 3 * k**3) / (PRODUCTS * CORES) + n * k / (WEIGHTS[code] * CORES)


def makespan(seconds: list[float], machines: int) -> float:
    """When the last machine is done, each next longest layer going to the one that is free first."""
    busy = [0.0] * machines
    for one in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)


def bytes_sent(shape: Shape, stages: int, machines: int) -> float:
    """Through the driver's network in a block: to and from all machines but its own."""
    watching = min(machines, MOST_PARTS)
    others = (watching - 1) / watching
    block = 4 * shape.weights * (stages + 1) * (watching - 1)
    hidden = 2 * shape.hidden * others
    states = MOST_PARTS * 8 * shape.hessians * others
    solving = sum(8 * k**2 + 4 * n * k for stage in shape.stages for n, k in stage) * others
    return block + hidden + states + solving


def sizes() -> list[str]:
    """What one block of each shape is, as a table."""
    rows = ["| | " + " | ".join(SHAPES) + " |", "| --- |" + " --- |" * len(SHAPES)]
    counts = {
        "blocks": lambda s: f"{s.blocks}",
        "weights of a block, float32": lambda s: f"{4 * s.weights / 1e9:.1f} GB",
        "its Hessians, float64": lambda s: f"{8 * s.hessians / 1e9:.1f} GB",
        "the largest of them": lambda s: f"{8 * s.inner**2 / 1e9:.1f} GB",
        "hidden states of all windows": lambda s: f"{s.hidden / 1e9:.1f} GB",
        "a call that solves the largest layer": lambda s: f"{(40 * s.inner**2 + 20 * s.inner * s.width) / 1e9:.0f} GB",
        "sent in a block, 2 machines": lambda s: f"{bytes_sent(s, 4, 2) / 1e9:.0f} GB",
        "sent in a block, 16 machines": lambda s: f"{bytes_sent(s, 4, 16) / 1e9:.0f} GB",
    }
    return rows + [
        f"| {name} | " + " | ".join(count(s) for s in SHAPES.values()) + " |" for name, count in counts.items()
    ]


def times(name: str) -> list[str]:
    """Hours of the whole model by machines, and what a block's time goes to, as a table."""
    shape = SHAPES[name]
    rows = [
        "| code, inputs anew for each | "
        + " | ".join(str(m) for m in MACHINES)
        + " | windows, solving, sending at 16 |",
        "| --- |" + " --- |" * (len(MACHINES) + 1),
    ]
    for code, refresh in ((code, refresh) for code in WEIGHTS for refresh in ("input", "block")):
        hours = [block_times(shape, code, refresh, m).total * shape.blocks / 3600 for m in MACHINES]
        at = block_times(shape, code, refresh, 16)
        shares = ", ".join(f"{100 * part / at.total:.0f} %" for part in (at.windows, at.solving, at.sending))
        rows.append(f"| {code}, {refresh} | " + " | ".join(f"{h:.1f} h" for h in hours) + f" | {shares} |")
    return rows


def draw(path: Path) -> None:
    """Hours against machines, with the line of perfect scaling."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axes, (name, shape) in zip(figure.subplots(1, 2), SHAPES.items(), strict=True):
        for code, colour in zip(WEIGHTS, ("#3b82c4", "#d9772b"), strict=True):
            for refresh, style in (("input", "o-"), ("block", "s--")):
                hours = [block_times(shape, code, refresh, m).total * shape.blocks / 3600 for m in MACHINES]
                axes.loglog(MACHINES, hours, style, color=colour, label=f"{code}, {refresh}")
            axes.loglog(MACHINES, [hours[0] / m for m in MACHINES], ":", color=colour, linewidth=1)
        axes.set(title=name, xlabel="machines of 64 cores", ylabel="hours")
        axes.set_xticks(MACHINES, [str(m) for m in MACHINES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend(title="dotted: perfect", fontsize=8)
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    print("\n".join(sizes()))
    for model in SHAPES:
        print(f"\n{model}\n")
        print("\n".join(times(model)))
    draw(Path(sys.argv[1]))
