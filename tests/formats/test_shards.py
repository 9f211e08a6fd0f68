"""Which files of a folder are read, and that they are read as the safetensors library reads them."""

import torch
from safetensors.torch import save_file

from formats.samples import tensors
from lowbit.formats import Shards, write_json_atomically, write_tensors_atomically


def assert_holds(shards, expected):
    assert shards.entries.keys() == expected.keys()
    assert all(torch.equal(shards.load(name), tensor) for name, tensor in expected.items())


def test_a_file_of_the_safetensors_library(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors", {"format": "pt"})
    shards = Shards.open(tmp_path)
    assert_holds(shards, tensors())
    assert shards.metadata == {"model.safetensors": {"format": "pt"}}
    assert shards.nbytes == sum(tensor.nbytes for tensor in tensors().values())


def test_a_header_of_odd_length_leaves_tensors_unaligned_and_readable(tmp_path):
    header = b'{"t":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}'
    assert len(header) % 8
    data = torch.tensor([1.5], dtype=torch.float64).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert Shards.open(tmp_path).load("t").tolist() == [1.5]


def test_shards_are_read_through_their_index(tmp_path):
    first, second = {"a": torch.ones(3), "b": torch.zeros(2)}, {"c": torch.full((2, 2), 7)}
    write_tensors_atomically(tmp_path / "x-1.safetensors", first, {"part": "1"})
    write_tensors_atomically(tmp_path / "x-2.safetensors", second, {})
    write_tensors_atomically(tmp_path / "of-another-run.safetensors", {"d": torch.ones(1)}, {})
    index = {"a": "x-1.safetensors", "b": "x-1.safetensors", "c": "x-2.safetensors"}
    write_json_atomically(tmp_path / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    shards = Shards.open(tmp_path)
    assert_holds(shards, first | second)
    assert shards.metadata == {"x-1.safetensors": {"part": "1"}, "x-2.safetensors": {}}


def test_a_single_file_goes_before_an_index_as_in_transformers(tmp_path):
    write_tensors_atomically(tmp_path / "model.safetensors", {"a": torch.ones(1)}, {})
    write_json_atomically(tmp_path / "model.safetensors.index.json", {"weight_map": {"b": "missing.safetensors"}})
    assert_holds(Shards.open(tmp_path), {"a": torch.ones(1)})


def test_a_single_file_may_have_any_name_and_be_a_link(tmp_path):
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    write_tensors_atomically(blobs / "digest", {"a": torch.ones(1)}, {})
    (folder / "weights.safetensors").symlink_to("../blobs/digest")
    assert_holds(Shards.open(folder), {"a": torch.ones(1)})


def test_a_loaded_tensor_is_a_copy(tmp_path):
    write_tensors_atomically(tmp_path / "model.safetensors", {"a": torch.ones(3)}, {})
    shards = Shards.open(tmp_path)
    shards.load("a").zero_()
    assert_holds(shards, {"a": torch.ones(3)})
