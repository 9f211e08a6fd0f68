"""How long a large model takes on so many machines, by counting: the tables and the figure of docs/scale.md.

    python tools/scale.py docs/scale.png

Times are sums of what a run does one after the other, each its operations over a rate or its bytes over the network's;
nothing overlaps. The driver runs on one of the machines, so that one machine sends nothing. Rates of the processor are
measured, those of the accelerator are assumed.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from lowbit.pipeline.activations import MOST_PARTS

# Of one core, measured (docs/LOG.md): multiply-adds/s in float32 and in float64, and weights/s through each code.
PRODUCTS, DOUBLE_PRODUCTS = 50e9, 8e9
WEIGHTS = {"optq": 4.6e6, "trellis": 0.1e6}
CORES, NETWORK = 64, 25e9 / 8
# Of one accelerator, assumed: multiply-adds/s in float32, half of what an H100's data sheet names, and bytes/s from and
# to memory that is not pinned.
DEVICE_PRODUCTS, DEVICE_BYTES = 15e12, 6e9
WINDOWS, LENGTH = 128, 2048
TOKENS = WINDOWS * LENGTH
MACHINES = (1, 2, 4, 8, 16, 32)
DEVICES = (0, 1, 8)


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
        """Numbers in one half of the Hessians of a block: K^2 / 2 for each input."""
        return sum(stage[0][1] ** 2 for stage in self.stages) // 2

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


def block_times(shape: Shape, code: str, refresh: str, machines: int, devices: int = 0) -> Times:
    """Of a block whose inputs are computed anew for each "input", or once for the "block". devices: accelerators that
    each machine has."""
    staged = refresh == "input"
    stages = shape.stages if staged else (tuple(layer for stage in shape.stages for layer in stage),)
    watching = machines * max(devices, 1)
    share = math.ceil(MOST_PARTS / min(watching, MOST_PARTS)) / MOST_PARTS
    work = TOKENS * (passed(shape, staged) + shape.hessians)
    if devices:
        windows = share * (work / DEVICE_PRODUCTS + bytes_to_device(shape, len(stages), watching) / DEVICE_BYTES)
    else:
        windows = share * work / (PRODUCTS * CORES)
    solving = sum(makespan([solve_seconds(*layer, code) for layer in stage], machines) for stage in stages)
    return Times(windows, solving, bytes_sent(shape, staged, machines) / NETWORK)


def passed(shape: Shape, staged: bool) -> float:
    """Weights that a token passes in a block, attention counted as the weights it is worth.

    Stage by stage: the output projection's inputs, once known, spare attention and what feeds it; those of the last
    layer are too wide to be kept. Otherwise everything but the last layer, and then all of it.
    """
    fed, out, gated, last = (sum(n * k for n, k in stage) for stage in shape.stages)
    attention = 2 * LENGTH * shape.width
    if staged:
        return fed + attention + out + (out + gated) + (out + gated + last)
    return 2 * (fed + attention + out + gated) + last


def solve_seconds(n: int, k: int, code: str) -> float:
    """N K^2 for feedback and losses, where float32 counts half, and 2/3 K^3 for the factor and that of the limit, in
    float64; the code."""
    return (n * k**2 + 2 / 3 * k**3) / (DOUBLE_PRODUCTS * CORES) + n * k / (WEIGHTS[code] * CORES)


def makespan(seconds: list[float], machines: int) -> float:
    """When the last machine is done, each next longest layer going to the one that is free first."""
    busy = [0.0] * machines
    for one in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)


def bytes_sent(shape: Shape, staged: bool, machines: int) -> float:
    """Through the driver's network in a block: to and from all machines but its own."""
    watching = min(machines, MOST_PARTS)
    others = (watching - 1) / watching
    block = 2 * 4 * shape.weights * (watching - 1)
    hidden = (4 if staged else 2) * shape.hidden * others
    states = MOST_PARTS * 8 * shape.hessians * others
    solving = sum(4 * k**2 + 4 * n * k for stage in shape.stages for n, k in stage) * others
    return block + hidden + states + solving


def bytes_sent_before(shape: Shape, machines: int) -> float:
    """What it was with all of a block sent at every stage and Hessians as squares, inputs anew for each."""
    watching = min(machines, MOST_PARTS)
    others = (watching - 1) / watching
    again = (5 - 2) * 4 * shape.weights * (watching - 1)
    squares = (MOST_PARTS * 8 * shape.hessians + sum(4 * k**2 for stage in shape.stages for _, k in stage)) * others
    kept_hidden = shape.hidden * others  # hidden states went again with what is kept
    return bytes_sent(shape, True, machines) + again + squares + kept_hidden


def bytes_to_device(shape: Shape, stages: int, devices: int) -> float:
    """Into and out of all accelerators in a block; where there are several, a cluster, the block with every call."""
    blocks = 2 if devices == 1 else MOST_PARTS * (stages + 1)
    return 4 * shape.weights * blocks + (stages + 2) * shape.hidden + MOST_PARTS * 8 * shape.hessians


def device_memory(shape: Shape) -> int:
    """What a call asks an accelerator for: the block, the largest Hessian twice, a batch three times."""
    return 4 * shape.weights + 16 * shape.inner**2 + 12 * LENGTH * shape.inner


def sizes() -> list[str]:
    """What one block of each shape is, as a table."""
    rows = ["| | " + " | ".join(SHAPES) + " |", "| --- |" + " --- |" * len(SHAPES)]
    counts = {
        "blocks": lambda s: f"{s.blocks}",
        "weights of a block, float32": lambda s: f"{4 * s.weights / 1e9:.1f} GB",
        "its Hessians, float64": lambda s: f"{16 * s.hessians / 1e9:.1f} GB",
        "the largest of them": lambda s: f"{8 * s.inner**2 / 1e9:.1f} GB",
        "hidden states of all windows": lambda s: f"{s.hidden / 1e9:.1f} GB",
        "a call that solves the largest layer": lambda s: f"{(16 * s.inner**2 + 16 * s.inner * s.width) / 1e9:.0f} GB",
        "a call that watches a block, on an accelerator": lambda s: f"{device_memory(s) / 1e9:.0f} GB",
        "sent in a block, 2 machines": lambda s: f"{bytes_sent(s, True, 2) / 1e9:.0f} GB",
        "so much before": lambda s: f"{bytes_sent_before(s, 2) / 1e9:.0f} GB",
        "sent in a block, 16 machines": lambda s: f"{bytes_sent(s, True, 16) / 1e9:.0f} GB",
        "so much before, of 16": lambda s: f"{bytes_sent_before(s, 16) / 1e9:.0f} GB",
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


def with_devices() -> list[str]:
    """Hours of the whole model by accelerators of one machine and of four, inputs anew for each, as a table."""
    places = [(machines, devices) for machines in (1, 4) for devices in DEVICES]
    heads = [f"{machines} x {devices}" if devices else f"{machines}" for machines, devices in places]
    rows = ["| | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(places)]
    for (name, shape), code in ((one, code) for one in SHAPES.items() for code in WEIGHTS):
        hours = [block_times(shape, code, "input", *place).total * shape.blocks / 3600 for place in places]
        rows.append(f"| {name}, {code} | " + " | ".join(f"{h:.1f} h" for h in hours) + " |")
    return rows


def draw(path: Path) -> None:
    """Hours against machines, with the line of perfect scaling."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axes, (name, shape) in zip(figure.subplots(1, 2), SHAPES.items(), strict=True):
        for code, colour in zip(WEIGHTS, ("#3b82c4", "#d9772b"), strict=True):
            for refresh, style in (("input", "o-"), ("block", "s--")):
                hours = [block_times(shape, code, refresh, m).total * shape.blocks / 3600 for m in MACHINES]
                axes.semilogx(MACHINES, hours, style, color=colour, label=f"{code}, {refresh}")
            axes.semilogx(MACHINES, [hours[0] / m for m in MACHINES], ":", color=colour, linewidth=1)
        axes.set(title=name, xlabel="machines of 64 cores", ylabel="hours", ylim=(0, None))
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
    print("\nmachines x accelerators\n")
    print("\n".join(with_devices()))
    draw(Path(sys.argv[1]))
