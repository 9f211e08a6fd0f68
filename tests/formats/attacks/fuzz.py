"""Coverage-guided damage: the fuzzer atheris looks for a checkpoint that does anything but load or be refused.

    pip install atheris
    python tests/formats/attacks/fuzz.py 100000

An input is a byte that says what it replaces in a sound checkpoint, and the bytes that come there: config.json, the
header of the shard, or all of the shard. Found are exceptions other than BadRequest, layers that decode to NaN, memory
of more than half a gigabyte, and every attempt to unpickle, to start a program or to open a connection.
The corpus is made of sound files with every recipe of the catalogue and is not kept.
"""

import json
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # as pytest has it

import atheris

with atheris.instrument_imports(include=["lowbit.formats", "lowbit.recipes", "lowbit.packing", "lowbit.core"]):
    from formats.attacks.test_random_damage import load_everything
    from formats.samples import config, write_checkpoint
    from lowbit.recipes import CATALOGUE, make_recipe, to_dict

_FORBIDDEN = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"}
_ROOM = 512 << 20
_LONGEST = 1 << 14


def forbid(event: str, arguments: tuple) -> None:
    if event in _FORBIDDEN:
        raise AssertionError(f"a checkpoint made lowbit do this: {event} {arguments!r}")


def seeds() -> list[bytes]:
    """Sound inputs of each kind."""
    found = [b"\0" + json.dumps(config()).encode()]
    for name in CATALOGUE:
        other = config()
        other["quantization_config"]["recipes"] = [to_dict(make_recipe(name))]
        found.append(b"\0" + json.dumps(other).encode())
    length = int.from_bytes(SHARD[:8], "little")
    return [*found, b"\1" + SHARD[8 : 8 + length], b"\2" + SHARD]


def test_one(data: bytes) -> None:
    kind, content = data[0] % 3 if data else 0, data[1:]
    if kind == 0:
        files = content, SHARD
    elif kind == 1:
        rest = SHARD[8 + int.from_bytes(SHARD[:8], "little") :]
        files = CONFIG, len(content).to_bytes(8, "little") + content + rest
    else:
        files = CONFIG, content
    for name, written in zip(("config.json", "model.safetensors"), files, strict=True):
        (FOLDER / name).write_bytes(written)
    load_everything(FOLDER)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/dev/shm") as checkpoint, tempfile.TemporaryDirectory() as corpus:
        FOLDER = Path(checkpoint)
        write_checkpoint(FOLDER)
        CONFIG, SHARD = ((FOLDER / name).read_bytes() for name in ("config.json", "model.safetensors"))
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
            test_one(seed)  # imports all that is ever needed
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _ROOM, resource.RLIM_INFINITY))
        sys.addaudithook(forbid)
        runs = [f"-runs={sys.argv[1]}", f"-max_len={_LONGEST}", "-rss_limit_mb=0", "-artifact_prefix=/tmp/lowbit-"]
        atheris.Setup([sys.argv[0], *runs, corpus], test_one)
        atheris.Fuzz()
