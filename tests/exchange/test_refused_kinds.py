"""Architectures whose layers other tools store in ways of their own are refused by name, before anything is written."""

import pytest

import lowbit
from integrations.checkpoints import quantize_in_place, tiny_model, write_checkpoint
from lowbit.core.errors import BadRequest
from lowbit.exchange.catalogue import EXPORTS

KINDS = {
    "gpt2": r"is a gpt2, whose layers are not nn\.Linear",
    "mixtral": r"quantized experts \(model\.layers\.0\.mlp\.experts\.0\.gate_proj\)",
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    model, folder = tiny_model(kind), tmp_path_factory.mktemp(kind) / "own"
    write_checkpoint(folder, model, quantize_in_place(model))
    return folder


@pytest.mark.parametrize("format", EXPORTS)
def test_no_format_takes_them(kind, folder, format, tmp_path):
    with pytest.raises(BadRequest, match=KINDS[kind]):
        lowbit.export(folder, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
