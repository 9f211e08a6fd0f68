"""Fresh interpreters: what a user gets who forgets the import, who trusts the stub, and who lacks lowbit."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from integrations.checkpoints import TOKENS, logits, quantize_in_place, tiny_model, write_checkpoint

FORGETS_THEN_TRUSTS = f"""
import sys, torch
from pathlib import Path
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
folder, out = Path(sys.argv[1]), Path(sys.argv[2])

def logits(model):
    with torch.no_grad():
        return model(torch.tensor({TOKENS.tolist()})).logits.float()

try:
    AutoModelForCausalLM.from_pretrained(folder)
except RuntimeError as error:
    refused = str(error)
assert "lowbit" not in sys.modules
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
assert "lowbit" in sys.modules
named = getattr(transformers, config.architectures[0]).from_pretrained(folder)  # as `transformers serve` does
trusting = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
plain = AutoModelForCausalLM.from_pretrained(folder)
save_file({{"named": logits(named), "trusting": logits(trusting), "plain": logits(plain)}}, out / "logits")
trusting.save_pretrained(out / "saved")
print(refused)
"""
LACKS_LOWBIT = """
import sys

class Nothing:
    def find_spec(name, path, target=None):
        if name == "lowbit":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Nothing)
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


def checkpoint(kind, folder):
    model = tiny_model(kind)
    write_checkpoint(folder, model, quantize_in_place(model))
    return logits(model)


def run(code, folder, out):
    environment = {"HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-c", code, folder, out]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_without_lowbit_loading_fails_and_with_the_stub_it_works(kind, tmp_path):
    expected = checkpoint(kind, tmp_path / "checkpoint")
    done = run(FORGETS_THEN_TRUSTS, tmp_path / "checkpoint", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for answer in load_file(tmp_path / "logits").values():
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    saved, own = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("saved", "checkpoint"))
    assert saved["architectures"] == own["architectures"]
    assert saved["quantization_config"] == own["quantization_config"]


def test_the_stub_says_what_to_install_where_lowbit_is_missing(tmp_path):
    checkpoint("llama", tmp_path / "checkpoint")
    done = run(LACKS_LOWBIT, tmp_path / "checkpoint", tmp_path)
    assert done.returncode != 0
    assert "pip install lowbit" in done.stderr
