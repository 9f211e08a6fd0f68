"""What is measured per token, against the definitions written out."""

import pytest
import torch
from torch.nn import functional

from evaluation.models import VOCABULARY, Table, tiny_model
from lowbit.core.errors import BadRequest, LowbitError
from lowbit.evaluation import tokens
from lowbit.evaluation.tokens import measure_tokens

MODEL, REFERENCE = tiny_model(1), tiny_model(2)
WINDOWS = torch.randint(0, VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def predictions(model, window):
    return torch.softmax(model(window[None]).logits[0, :-1].double(), dim=-1)


def test_nats_are_the_cross_entropy_of_each_window():
    found = measure_tokens(MODEL, WINDOWS)
    assert found.nats.shape == (5, 11)
    assert found.kl is None
    for row, window in zip(found.nats, WINDOWS, strict=True):
        with torch.no_grad():
            direct = functional.cross_entropy(MODEL(window[None]).logits[0, :-1].double(), window[1:], reduction="none")
        torch.testing.assert_close(row, direct, rtol=1e-5, atol=1e-6)


def test_kl_and_agreement_are_what_their_definitions_say():
    found = measure_tokens(MODEL, WINDOWS, REFERENCE)
    for number, window in enumerate(WINDOWS):
        p, q = predictions(REFERENCE, window), predictions(MODEL, window)
        torch.testing.assert_close(found.kl[number], (p * (p / q).log()).sum(-1), rtol=1e-5, atol=1e-6)
        assert torch.equal(found.agrees[number], p.argmax(-1) == q.argmax(-1))
        torch.testing.assert_close(found.reference_nats[number], -p[range(11), window[1:]].log(), rtol=1e-5, atol=1e-6)


def test_kl_runs_from_the_reference_to_the_model():
    """The other direction, and natural logarithms, would give other numbers."""
    q, p = Table(torch.tensor([[0.0, 0.0], [0.0, 0.0]])), Table(torch.tensor([[3.0, 0.0], [0.0, 0.0]]).log1p())
    found = measure_tokens(q, torch.tensor([[0, 0], [1, 0]]), p)
    assert float(found.kl[0, 0]) == pytest.approx(0.8 * torch.tensor(1.6).log() + 0.2 * torch.tensor(0.4).log())
    assert float(found.kl[1, 0]) == 0


def test_agreement_counts_equal_first_choices():
    reference = Table(torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]]))
    model = Table(torch.tensor([[9.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.5, 0.6]]))
    found = measure_tokens(model, torch.tensor([[0, 1, 2, 0]]), reference)
    assert found.agrees.tolist() == [[True, False, True]]


def test_a_model_does_not_differ_from_itself():
    found = measure_tokens(MODEL, WINDOWS, MODEL)
    assert torch.equal(found.kl, torch.zeros(5, 11, dtype=torch.float64))
    assert bool(found.agrees.all())
    assert torch.equal(found.nats, found.reference_nats)


def test_kl_of_almost_equal_models_keeps_its_digits():
    """For small differences d of logits, KL is half their variance under the prediction: 1e-10 here."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 500, generator=rng, dtype=torch.float64)
    step = 1e-5 * torch.randn(500, 500, generator=rng, dtype=torch.float64)
    window = torch.arange(21)[None]
    found = measure_tokens(Table(logits + step), window, Table(logits))
    p, d = torch.softmax(logits[:20], -1), step[:20]
    variance = (p * d**2).sum(-1) - (p * d).sum(-1) ** 2
    torch.testing.assert_close(found.kl[0], variance / 2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("chunk", [1, VOCABULARY * 7, 1 << 24])
@pytest.mark.parametrize("batch", [1, 30])
def test_neither_chunks_nor_batches_change_the_answer(monkeypatch, chunk, batch):
    whole = measure_tokens(MODEL, WINDOWS, REFERENCE)
    monkeypatch.setattr(tokens, "_CHUNK", chunk)
    monkeypatch.setattr(tokens, "_BATCH", batch)
    found = measure_tokens(MODEL, WINDOWS, REFERENCE)
    torch.testing.assert_close(found.nats, whole.nats, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.kl, whole.kl, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.agrees, whole.agrees)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("batch", [1, 2048])
def test_bad_logits_name_their_window_and_model(monkeypatch, bad, batch):
    monkeypatch.setattr(tokens, "_BATCH", batch)
    sound, broken = torch.zeros(4, 4), torch.zeros(4, 4)
    broken[3, 2] = bad
    windows = torch.tensor([[0, 1, 2], [1, 2, 3], [0, 3, 1], [3, 3, 3]])
    with pytest.raises(LowbitError, match=r"The model's logits .* window 2 ") as raised:
        measure_tokens(Table(broken), windows)
    assert not isinstance(raised.value, BadRequest)
    with pytest.raises(LowbitError, match=r"The reference's logits .* window 2 "):
        measure_tokens(Table(sound), windows, Table(broken))


def test_vocabularies_must_agree():
    with pytest.raises(BadRequest, match="reference predicts 6 tokens, the model 5"):
        measure_tokens(Table(torch.zeros(5, 5)), torch.tensor([[0, 1]]), Table(torch.zeros(6, 6)))


def test_dropout_is_off_and_the_models_mode_comes_back():
    model = tiny_model(1, attention_dropout=0.9).train()
    found = measure_tokens(model, WINDOWS)
    assert model.training
    torch.testing.assert_close(found.nats, measure_tokens(MODEL, WINDOWS).nats)


def test_progress_ends_at_the_number_of_windows(monkeypatch):
    monkeypatch.setattr(tokens, "_BATCH", 24)
    calls = []
    measure_tokens(MODEL, WINDOWS, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 5), (4, 5), (5, 5)]
