"""From finished layers to a Hugging Face folder.

Shards are written one after the other, each whole or absent: the layers' own files supply the quantized tensors, the
source model everything else, byte for byte and under its own key. The folder grows inside the work folder, is loaded
and compared there, and only then moved to its place, `config.json` last: without it nothing loads a folder.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from lowbit.core.recipe import to_dict
from lowbit.formats.checkpoint import quantization_config, stored_layout
from lowbit.formats.files import write_json_atomically, write_tensors_atomically, write_text_atomically
from lowbit.formats.folder import copy_companions, move_files
from lowbit.formats.shards import read_tensors
from lowbit.pipeline.drive import Run, layer_path
from lowbit.pipeline.plan import LeftAlone, PlannedLayer

_SHARD_BYTES = 1 << 30


def assemble(run: Run, folder: Path, version: str, remote_code: tuple[str, Mapping[str, Any]]) -> None:
    """Write the finished checkpoint to `folder`.

    remote_code: text of the module that imports lowbit for `trust_remote_code=True`, and the `auto_map` that names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(run)
    names = _shard_names(len(shards))
    index: dict[str, str] = {}
    total = written = 0
    for name, members in zip(names, shards, strict=True):
        tensors = _tensors(run, members)
        written += len(members)
        run.progress("writing the checkpoint", written, sum(map(len, shards)))
        write_tensors_atomically(folder / name, tensors, {"format": "pt"})
        index |= dict.fromkeys(sorted(tensors), name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(names) > 1:
        write_json_atomically(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
        )
    copy_companions(run.source.folder, folder)
    text, auto_map = remote_code
    write_text_atomically(folder / "modeling_lowbit.py", text)
    config = json.loads((run.source.folder / "config.json").read_text(encoding="utf-8"))
    layers = {layer.name: (to_dict(layer.recipe), layer.shape) for layer in run.plan.layers}
    config |= {"auto_map": dict(auto_map), "quantization_config": quantization_config(layers, version)}
    write_json_atomically(folder / "config.json", config)


def move_into_place(staging: Path, out: Path, work: Path) -> None:
    """Move the files of a checked checkpoint to `out`, config.json last, then remove the work folder, journal last;
    may be repeated after a crash."""
    if staging.exists():
        move_files(staging, out, [path.name for path in staging.iterdir()])
    for folder in (path for path in work.iterdir() if path.is_dir()):
        shutil.rmtree(folder)
    for path in sorted(work.iterdir(), key=lambda path: path.name == "journal.jsonl"):
        path.unlink()
    with suppress(OSError):  # a second run may be waiting for the lock there
        work.rmdir()


def _split(run: Run) -> list[list[PlannedLayer | LeftAlone]]:
    """Everything to write, in order, in shards of bounded size."""
    shards: list[list[PlannedLayer | LeftAlone]] = [[]]
    size = 0
    members: list[PlannedLayer | LeftAlone] = [*run.plan.left_alone, *run.plan.layers]
    for member in members:
        if size + member.nbytes > _SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(member)
        size += member.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _tensors(run: Run, members: list[PlannedLayer | LeftAlone]) -> dict[str, Tensor]:
    separated = _separated_experts(run)
    ours = {key: name for name, key in run.source.keys.items()}
    tensors: dict[str, Tensor] = {}
    for member in members:
        if isinstance(member, PlannedLayer):
            stored = read_tensors(layer_path(run.work, member.name))
            assert stored.keys() == stored_layout(member.recipe, member.shape).keys()
            tensors |= {f"{member.name}.{field}": tensor for field, tensor in stored.items()}
        else:
            name = ours.get(member.name, member.name)
            tensors[name if name.startswith(separated) else member.name] = run.source.shards.load(member.name)
    return tensors


def _separated_experts(run: Run) -> tuple[str, ...]:
    """Paths of experts of which some are quantized: a loader holds them one by one, under our names."""
    found = {layer.name.partition(".experts.")[0] for layer in run.plan.layers if ".experts." in layer.name}
    return tuple(f"{path}.experts." for path in sorted(found))
