"""A table of malformed folders: each row damages a good checkpoint in one way, and says what the refusal must name."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from formats.samples import LAYER, config, tensors
from lowbit.core.fields import Bits
from lowbit.formats import write_json_atomically, write_tensors_atomically
from lowbit.packing import pack

Attack = tuple[Callable[[Path], None], str]
MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


def raw(header: bytes | dict | list, data: bytes = b"", length: int | None = None) -> Callable[[Path], None]:
    """A safetensors file of any header, data and claimed header length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = (len(text) if length is None else length).to_bytes(8, "little") + text + data
    return lambda folder: (folder / MODEL).write_bytes(content) and None


def one(dtype="U8", shape=(4,), offsets=(0, 4), data: bytes = bytes(4), **more) -> Callable[[Path], None]:
    """A file of one tensor "t", described so."""
    return raw({"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}, data)


def two(first: tuple[int, int], second: tuple[int, int]) -> Callable[[Path], None]:
    """A file of eight bytes and two tensors "t" and "u" that lie where told."""
    header = {
        name: {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
        for name, (start, end) in {"t": first, "u": second}.items()
    }
    return raw(header, bytes(8))


def cut(keep: int) -> Callable[[Path], None]:
    """The file without its end (keep < 0: so many bytes fewer)."""
    return lambda folder: (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:keep]) and None


def indexed(index: object, second: dict | None = None) -> Callable[[Path], None]:
    """The file as the shard "a.safetensors", another shard if given, and this index."""

    def damage(folder: Path) -> None:
        (folder / MODEL).rename(folder / "a.safetensors")
        if second is not None:
            write_tensors_atomically(folder / "b.safetensors", second, {})
        write_json_atomically(folder / INDEX, index)

    return damage


def sparse(name: str, size: int) -> Callable[[Path], None]:
    """File `name` extended to `size` bytes that take no room on the disk."""
    return lambda folder: os.truncate(folder / name, size)


def then(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [damage(folder) for damage in damages] and None


def weight_map(**more: str) -> dict:
    return {"weight_map": {**dict.fromkeys(tensors(), "a.safetensors"), **more}}


def stored(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    """The checkpoint with tensor `name` of the quantized layer changed, or left out where the change gives None."""

    def damage(folder: Path) -> None:
        changed = {**tensors(), f"{LAYER}.{name}": change(tensors().get(f"{LAYER}.{name}", torch.zeros(1)).clone())}
        write_tensors_atomically(folder / MODEL, {k: v for k, v in changed.items() if v is not None}, {})

    return damage


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[-1] = value
        return tensor

    return change


def configured(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """The checkpoint with its quantization_config changed in place."""

    def damage(folder: Path) -> None:
        data = config()
        change(data["quantization_config"])
        write_json_atomically(folder / "config.json", data)

    return damage


def layer(**changes: object) -> Callable[[Path], None]:
    return configured(lambda data: data["layers"][LAYER].update(changes))


def recipe(**changes: object) -> Callable[[Path], None]:
    return configured(lambda data: data["recipes"][0].update(changes))


def only(*names: str) -> Callable[[Path], None]:
    """A folder of these files (each of a few bytes) and nothing else."""

    def damage(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name in names:
            (folder / name).write_bytes(b"some bytes")

    return damage


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def pipe_for_shard(folder: Path) -> None:
    indexed(weight_map(x="b.safetensors"))(folder)
    os.mkfifo(folder / "b.safetensors")


HEADERS: dict[str, Attack] = {
    "empty file": (cut(0), "model.safetensors has 0 bytes"),
    "cut in the header's length": (cut(4), "has 4 bytes"),
    "cut in the header": (cut(100), "has 100 bytes but claims a header"),
    "cut in the last tensor": (cut(-1), "cut short"),
    "bytes after the end": (one(data=bytes(5)), "has 73 bytes where its header describes 72"),
    "header length 2^60": (raw({}, length=2**60), str(2**60)),
    "header length 2^64 - 1": (raw({}, length=2**64 - 1), str(2**64 - 1)),
    "header length 99 MB": (raw({}, length=99_000_000), "99000000"),
    "header of 200 MB in a larger file": (then(raw({}, length=200_000_000), sparse(MODEL, 2**30)), "200000000"),
    "header longer than the file by one": (raw(b"{}", length=3), "claims a header of 3"),
    "header is not JSON": (raw(b"{t: U8}"), "its header is not valid JSON"),
    "header is empty": (raw(b""), "its header is not valid JSON"),
    "header is not UTF-8": (raw(b'{"\xff": 1}'), "its header is not valid JSON"),
    "header is a list": (raw([1, 2]), "not an object"),
    "header nested too deep": (raw(b"[" * 100_000), "its header is not valid JSON"),
    "number too long": (raw(b'{"t": ' + b"9" * 10_000 + b"}"), "its header is not valid JSON"),
    "tensor named twice": (raw(b'{"t": 1, "t": 2}'), "'t' appears twice"),
    "field named twice": (raw(b'{"t": {"dtype": "U8", "dtype": "F32"}}'), "'dtype' appears twice"),
    "metadata is not text": (raw({"__metadata__": {"format": 1}}), "__metadata__"),
    "metadata is a list": (raw({"__metadata__": []}), "__metadata__"),
    "tensor is a list": (raw({"t": [1, 2]}), "tensor 't' must be described"),
    "field missing": (raw({"t": {"dtype": "U8", "shape": [4]}}), "tensor 't' must be described"),
    "field too many": (one(stride=1), "tensor 't' must be described"),
    "unknown type": (one(dtype="F4"), "type 'F4'"),
    "type is a list": (one(dtype=[]), "the type"),
    "wrong type": (one(dtype="F32"), "F32 \\[4\\], 16 bytes"),
    "negative offset": (one(offsets=(-4, 0)), "data_offsets"),
    "end before start": (one(offsets=(4, 0)), "lies at \\[4, 0\\]"),
    "offset is a float": (one(offsets=(0.0, 4.0)), "data_offsets"),
    "offset is true": (one(shape=(1,), offsets=(False, True)), "data_offsets"),
    "one offset": (one(offsets=(4,)), "data_offsets"),
    "offset of a gigabyte": (one(shape=(2**30,), offsets=(0, 2**30)), "header describes 10737"),
    "offset of an exabyte": (one(shape=(2**60,), offsets=(0, 2**60)), "header describes"),
    "tensors overlap": (two((0, 5), (4, 8)), "'u' overlaps"),
    "tensors are the same": (two((0, 8), (0, 8)), "overlaps"),
    "hole between tensors": (two((0, 3), (4, 8)), "'u' leaves a hole"),
    "hole before the first": (two((4, 8), (2, 4)), "'u' leaves a hole"),
    "shape is a number": (one(shape=4), "not a list of sizes"),
    "negative size": (one(shape=(-2, -2)), "not a list of sizes"),
    "size is a float": (one(shape=(4.0,)), "not a list of sizes"),
    "size is true": (one(shape=(4, True)), "not a list of sizes"),
    "too many dimensions": (one(shape=[1] * 4000 + [4]), "not a list of sizes"),
    "shape overflows to the right size": (one(dtype="F32", shape=(2**31, 2**31 + 1, 4)), "impossible shape"),
    "shape wraps around to zero": (one(shape=(2**32, 2**32), offsets=(0, 0), data=b""), "impossible shape"),
    "huge sizes beside a zero": (one(shape=(0, 2**62, 2**62), offsets=(0, 0), data=b""), "impossible shape"),
    "size above 64 bits": (one(shape=(2**64 + 4,)), "not a list of sizes"),
}

FOLDERS: dict[str, Attack] = {
    "no folder": (no_folder, "does not exist"),
    "a file": (file_for_folder, "is a file, not a folder"),
    "empty folder": (only(), "it holds nothing"),
    "only pickles": (only("pytorch_model.bin", "config.json"), "pickle can run any code.*save_pretrained"),
    "only GGUF": (only("model.gguf"), "no safetensors files; it holds model.gguf"),
    "shards without an index": (only("a.safetensors", "b.safetensors"), "2 safetensors files but no .*index.json"),
    "index is not JSON": (only(INDEX), "index.json is not valid JSON"),
    "index without a map": (indexed({"metadata": {}}), "weight_map must map"),
    "index is a list": (indexed([]), "not an object"),
    "map to numbers": (indexed({"weight_map": {"t": 1}}), "weight_map must map"),
    "empty map": (indexed({"weight_map": {}}), "weight_map must map"),
    "missing shard": (indexed(weight_map(x="b.safetensors")), "lacks the shard 'b.safetensors'"),
    "shard is a folder": (indexed(weight_map(x=".")), "names the shard '\\.'"),
    "shard is a pipe": (pipe_for_shard, "lacks the shard 'b.safetensors'"),
    "shard above the folder": (indexed(weight_map(x="../model.safetensors")), "'../model.safetensors': shards lie in"),
    "shard at an absolute path": (indexed(weight_map(x="/etc/passwd")), "'/etc/passwd': shards lie in"),
    "shard on another drive": (indexed(weight_map(x="..\\x.safetensors")), "shards lie in the folder itself"),
    "shard with a null byte": (indexed(weight_map(x="a\0.safetensors")), "lacks the shard"),
    "tensor that the shard lacks": (indexed(weight_map(x="a.safetensors")), "'x' is in a.safetensors"),
    "tensor in the other shard": (
        indexed(weight_map(t="a.safetensors", x="b.safetensors"), {"t": torch.ones(1), "x": torch.ones(1)}),
        "'t' is in a.safetensors",
    ),
    "tensor not in the index": (
        indexed(weight_map(x="b.safetensors"), {"t": torch.ones(1), "x": torch.ones(1)}),
        "does not list 't'",
    ),
    "tensor in two shards": (
        indexed(weight_map(x="b.safetensors"), {"x": torch.ones(1), f"{LAYER}.bias": torch.ones(1)}),
        f"both hold '{LAYER}.bias'",
    ),
}

TENSORS: dict[str, Attack] = {
    "codes missing": (stored("weight", lambda _: None), "tensor 'model.layer.weight' is missing"),
    "codes too short": (stored("weight", lambda w: w[:-1]), "weight is torch.uint8 \\[47\\]"),
    "codes too long": (stored("weight", lambda w: torch.cat([w, w[:1]])), "weight is torch.uint8 \\[49\\]"),
    "codes of another shape": (stored("weight", lambda w: w.view(6, 8)), "weight is torch.uint8 \\[6, 8\\]"),
    "dense weight": (stored("weight", lambda _: torch.zeros(6, 20)), "weight is torch.float32"),
    "codes as signed bytes": (stored("weight", lambda w: w.view(torch.int8)), "weight is torch.int8"),
    "spare bits of codes": (stored("weight", lambda w: w | 128), "weight: the spare bits"),
    "spare bits of zero points": (stored("zero", lambda z: z | 128), "zero: the spare bits"),
    "spare bits of the order": (stored("order", lambda o: o | 128), "order: the spare bits"),
    "scale missing": (stored("scale", lambda _: None), "tensor 'model.layer.scale' is missing"),
    "scale of another type": (stored("scale", lambda s: s.bfloat16()), "scale is torch.bfloat16"),
    "scale transposed": (stored("scale", lambda s: s.T), "scale is torch.float16 \\[5, 6\\]"),
    "NaN scale": (stored("scale", with_value(torch.nan)), "scale holds NaN"),
    "infinite scale": (stored("scale", with_value(torch.inf)), "scale holds NaN or Inf"),
    "zero scale": (stored("scale", with_value(0)), "scale that is not positive"),
    "negative scale": (stored("scale", with_value(-1)), "scale that is not positive"),
    "order with a repeat": (stored("order", lambda o: torch.zeros_like(o)), "order does not name each of the 20"),
    "order beyond the columns": (
        stored("order", lambda _: pack(torch.arange(1, 21), Bits((20,), 5))),
        "order does not name each of the 20",
    ),
    "unknown tensor of a layer": (stored("extra", lambda t: t), "'model.layer.extra' is not one that layer"),
    "unknown tensor deeper down": (stored("a.b.c", lambda t: t), "'model.layer.a.b.c' is not one that layer"),
    "bias too short": (stored("bias", lambda b: b[1:]), "bias is torch.bfloat16 \\[5\\]"),
    "bias of integers": (stored("bias", lambda b: b.int()), "bias is torch.int32"),
    "NaN bias": (stored("bias", with_value(torch.nan)), "bias holds NaN"),
}

CONFIGS: dict[str, Attack] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json cannot be opened"),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text("{") and None, "not valid JSON"),
    "config of a gigabyte": (sparse("config.json", 2**30), f"config.json has {2**30} bytes"),
    "not quantized": (
        lambda folder: write_json_atomically(folder / "config.json", {"hidden_size": 20}),
        "has no quantization_config",
    ),
    "another method": (configured(lambda data: data.update(quant_method="gptq")), "'gptq', not 'lowbit'"),
    "newer version": (configured(lambda data: data.update(format_version=2)), "written by a newer lowbit.*Upgrade"),
    "version zero": (configured(lambda data: data.update(format_version=0)), "format_version is 0"),
    "version is text": (configured(lambda data: data.update(format_version="1")), "format_version is '1'"),
    "version missing": (configured(lambda data: data.pop("format_version")), "format_version is None"),
    "writer missing": (configured(lambda data: data.pop("lowbit_version")), "lowbit_version is None"),
    "recipes is an object": (configured(lambda data: data.update(recipes={})), "recipes must be a list"),
    "recipe is text": (configured(lambda data: data.update(recipes=["optq"])), "recipes must be a list"),
    "layers is a list": (configured(lambda data: data.update(layers=[])), "layers must be an object"),
    "layer is a number": (configured(lambda data: data["layers"].update(x=1)), "layers\\['x'\\]"),
    "layer with a field too many": (layer(bits=3), "layers\\['model.layer'\\]"),
    "recipe index too large": (layer(recipe=1), "recipe 1 is not an index"),
    "recipe index negative": (layer(recipe=-1), "recipe -1 is not an index"),
    "recipe index true": (configured(lambda d: d["layers"][LAYER].update(recipe=False)), "recipe False is not"),
    "shape of one size": (layer(shape=[120]), "shape must be"),
    "shape of nothing": (layer(shape=[0, 20]), "shape must be"),
    "shape negative": (layer(shape=[-6, -20]), "shape must be"),
    "shape of floats": (layer(shape=[6.0, 20.0]), "shape must be"),
    "shape of exabytes": (layer(shape=[2**60, 2**60]), "shape must be"),
    "shape of gigabytes": (layer(shape=[2**31 - 1, 2**31 - 1]), "but the recipe stores"),
    "shape transposed": (layer(shape=[20, 6]), "but the recipe stores"),
    "layer that is not there": (
        configured(lambda data: data["layers"].update({"model.other": data["layers"][LAYER]})),
        "'model.other': tensor 'model.other.weight' is missing",
    ),
    "unknown part": (recipe(rounder={"part": "Oracle"}), "no part named 'Oracle'"),
    "unknown field of a part": (recipe(rounder={"part": "Ldlq", "luck": 7}), "unknown field 'luck'"),
    "part out of its range": (recipe(rounder={"part": "Ldlq", "damping": -1}), "damping"),
    "unknown field of the recipe": (recipe(speed=7), "unknown field 'speed'"),
    "recipe without a code": (configured(lambda data: data["recipes"][0].pop("code")), "recipes\\[0\\]"),
    "bits that the files do not hold": (
        configured(lambda data: data["recipes"][0]["code"].update(bits=4)),
        "but the recipe stores",
    ),
    "group that does not divide": (
        configured(lambda data: data["recipes"][0]["code"].update(group_size=7)),
        "group_size|recipe stores",
    ),
}
