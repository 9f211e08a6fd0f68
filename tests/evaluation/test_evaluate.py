"""Evaluating folders and loaded models: windows, estimates, sizes, and requests that cannot be met."""

import json
import math

import pytest
import torch

from evaluation.models import CONTEXT, VOCABULARY, byte_tokenizer, tiny_model
from lowbit.core.errors import BadRequest
from lowbit.evaluation import evaluate
from lowbit.evaluation.tokens import measure_tokens

TEXT = "The quick brown fox jumps over the lazy dog. " * 4
"""181 tokens with the end of text."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model(1).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return str(path)


def windows_of(length):
    ids = torch.tensor([*byte_tokenizer()(TEXT)["input_ids"], 256])
    return ids[: len(ids) // length * length].view(-1, length)


class TestFolder:
    def test_perplexity_over_windows_that_do_not_overlap(self, folder, text):
        calls = []
        found = evaluate(folder, text=text, progress=lambda done, total: calls.append((done, total)))
        assert (found.text, found.windows, found.length, found.tokens) == (text, 5, CONTEXT, 5 * (CONTEXT - 1))
        nats = measure_tokens(tiny_model(1), windows_of(CONTEXT)).nats
        assert found.nats.mean == pytest.approx(float(nats.mean()), rel=1e-6)
        assert found.perplexity.mean == pytest.approx(math.exp(nats.mean()), rel=1e-5)
        assert found.nats.error == pytest.approx(float(nats.mean(1).std()) / math.sqrt(5), rel=1e-5)
        assert found.perplexity.error == pytest.approx(found.perplexity.mean * found.nats.error)
        assert found.divergence is None
        assert calls[-1] == (5, 5)

    def test_length_and_number_of_windows_as_asked(self, folder, text):
        found = evaluate(str(folder), text=text, length=20, windows=3)
        assert (found.windows, found.length) == (3, 20)
        assert found.nats.mean == pytest.approx(float(measure_tokens(tiny_model(1), windows_of(20)[:3]).nats.mean()))

    def test_itself_as_reference(self, folder, text):
        found = evaluate(folder, reference=tiny_model(1), text=text)
        assert (found.divergence.kl.mean, found.divergence.agreement.mean) == (0, 1)
        assert set(found.divergence.kl_quantiles.values()) == {0}
        assert found.divergence.kl_histogram["counts"][0] == found.tokens
        assert found.divergence.perplexity == found.perplexity

    def test_size_of_a_plain_checkpoint(self, folder, text):
        size = evaluate(folder, text=text, windows=1).size
        assert size.bytes == (folder / "model.safetensors").stat().st_size
        assert size.parameters == sum(p.numel() for p in tiny_model().parameters())
        assert size.bits_per_parameter == pytest.approx(32, rel=0.2)
        assert size.bits_per_weight is None

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"length": CONTEXT + 1}, f"Windows of {CONTEXT + 1} tokens: the model reads at most {CONTEXT}"),
            ({"length": 1}, "at least 2"),
            ({"windows": 0}, "Evaluation over 0 windows"),
            ({"text": "none.txt"}, "none.txt does not exist"),
        ],
    )
    def test_requests_that_cannot_be_met(self, folder, text, options, complaint):
        with pytest.raises(BadRequest, match=complaint):
            evaluate(folder, **{"text": text, **options})

    def test_text_too_short(self, folder, tmp_path):
        (tmp_path / "short.txt").write_text("abc")
        with pytest.raises(BadRequest, match="too short: 4 tokens, and one window needs 32"):
            evaluate(folder, text=str(tmp_path / "short.txt"))

    def test_tokenizer_of_another_model(self, text, tmp_path):
        tiny_model(vocabulary=256).save_pretrained(tmp_path)
        byte_tokenizer().save_pretrained(tmp_path)
        with pytest.raises(BadRequest, match="does not belong to this model: it gives token 256"):
            evaluate(tmp_path, text=text)

    def test_folder_without_tokenizer(self, text, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        with pytest.raises(BadRequest, match="no tokenizer"):
            evaluate(tmp_path, text=text)

    def test_truncated_checkpoint(self, folder, text, tmp_path):
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        shard = tmp_path / "model.safetensors"
        shard.write_bytes(shard.read_bytes()[:-100])
        with pytest.raises(BadRequest, match=r"model\.safetensors"):
            evaluate(tmp_path, text=text)

    def test_missing_folder(self):
        with pytest.raises(BadRequest):
            evaluate("./no/such/folder")


class TestLoadedModel:
    windows = torch.randint(0, VOCABULARY, (40, 16), generator=torch.Generator().manual_seed(0))

    def test_windows_are_taken_as_they_are(self):
        found = evaluate(tiny_model(1), text=self.windows, reference=tiny_model(2))
        tokens = measure_tokens(tiny_model(1), self.windows, tiny_model(2))
        assert (found.windows, found.length, found.size) == (40, 16, None)
        assert found.divergence.kl.mean == pytest.approx(float(tokens.kl.mean()))
        assert found.divergence.agreement.mean == pytest.approx(float(tokens.agrees.double().mean()))
        assert found.divergence.perplexity.mean == pytest.approx(math.exp(tokens.reference_nats.mean()))

    def test_quantiles_are_of_tokens(self):
        found = evaluate(tiny_model(1), text=self.windows, reference=tiny_model(2)).divergence.kl_quantiles
        kl = measure_tokens(tiny_model(1), self.windows, tiny_model(2)).kl.flatten()
        assert list(found) == ["50", "90", "99", "99.9", "max"]
        assert found["50"] == pytest.approx(float(kl.quantile(0.5)))
        assert found["99.9"] == pytest.approx(float(kl.quantile(0.999)))
        assert found["max"] == float(kl.max())

    def test_standard_error_covers_the_spread_over_other_texts(self):
        """The error of 10 windows agrees with the spread of means over many tens of windows."""
        model, rng = tiny_model(1), torch.Generator().manual_seed(1)
        texts = torch.randint(0, VOCABULARY, (300, 16), generator=rng)
        means = measure_tokens(model, texts).nats.mean(1).view(30, 10).mean(1)
        errors = [evaluate(model, text=one).nats.error for one in texts.view(30, 10, 16)[:10]]
        assert sum(errors) / len(errors) == pytest.approx(float(means.std()), rel=0.35)

    def test_one_window_has_no_spread(self):
        found = evaluate(tiny_model(1), text=self.windows[:1])
        assert (found.nats.error, found.perplexity.error) == (None, None)

    def test_measures_are_json(self):
        found = evaluate(tiny_model(1), text=self.windows[:2], reference=tiny_model(2)).to_dict()
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found["divergence"]["kl"].keys() == {"mean", "error"}

    def test_windows_longer_than_the_context(self):
        with pytest.raises(BadRequest, match=f"the model reads at most {CONTEXT}"):
            evaluate(tiny_model(1), text=torch.zeros(2, CONTEXT + 1, dtype=torch.int64))

    def test_text_needs_a_tokenizer(self):
        with pytest.raises(BadRequest, match="its tokenizer is unknown"):
            evaluate(tiny_model(1), text="stdlib")
