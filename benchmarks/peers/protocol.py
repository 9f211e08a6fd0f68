"""What a peer's script is given, and what it gives back; needs torch and safetensors only, so every environment has it.

    python PEER_run.py VERB WORK

WORK holds `settings.json`, `model/` (a folder transformers loads) and `windows.safetensors` (`calibration` and
`evaluation`, token ids [count, length]). A script prints one line RESULT {json} with seconds and peak bytes. The verb
`weights` writes WORK/weights.safetensors, the quantized layers' weights as plain floats [N, K] under the layers' names,
which lowbit measures, so that every peer is judged by the same evaluation.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Verb = Callable[[Path, dict], dict]


def main(verbs: Mapping[str, Verb]) -> None:
    """Do what the command line asks for; a verb returns what it measured."""
    what, work = sys.argv[1], Path(sys.argv[2])
    settings = json.loads((work / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    measured = verbs[what](work, settings)
    measured.setdefault("peak_bytes", peak_bytes())
    print("RESULT " + json.dumps(measured), flush=True)


def peak_bytes() -> int:
    """Of this process since it began; getrusage would count its parent's memory at the fork."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def calibration(work: Path) -> Tensor:
    """Token ids [count, length]."""
    return load_file(work / "windows.safetensors")["calibration"]


def batches(work: Path, size: int = 8) -> list[Tensor]:
    return list(calibration(work).split(size))


def quantized_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The linear layers of the decoder blocks: what all sides quantize. Not the head, which is tied or kept."""
    return {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".layers." in name}


def write_weights(work: Path, weights: Mapping[str, Tensor]) -> None:
    """weights: of each quantized layer, [N, K], by the layer's name."""
    plain = {name: weight.detach().float().contiguous() for name, weight in weights.items()}
    save_file(plain, work / "weights.safetensors")


def grid_bits(settings: Mapping, group_size: int | None = None, zero_bits: int | None = None) -> float:
    """Bits per weight of codes, float16 scales and zero points of the codes' own width, or of `zero_bits`."""
    bits = settings["bits"]
    zero = 0 if settings["symmetric"] else zero_bits or bits
    return bits + (16 + zero) / (group_size or settings["group_size"])


def stored(folder: Path, layers: Mapping[str, Tensor]) -> dict[str, float]:
    """What a checkpoint's files take: bits per weight for everything under the layers' names, bytes in all."""
    files = list(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    spent = sum(t.nbytes for name, t in tensors.items() if name.rpartition(".")[0] in layers)
    weights = sum(weight.numel() for weight in layers.values())
    return {"stored_bits": 8 * spent / weights, "file_bytes": sum(file.stat().st_size for file in files)}
