"""Tasks through lm-eval: what its results become, and a run on a local task where it is installed."""

import importlib.util
import json

import pytest
import torch

from evaluation.models import byte_tokenizer, tiny_model
from lowbit.core.errors import BadRequest
from lowbit.evaluation import Estimate, evaluate
from lowbit.evaluation.tasks import _estimates, evaluate_tasks
from lowbit.evaluation.tokens import measure_tokens

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed (pip install lowbit[tasks])")


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_harness():
    with pytest.raises(BadRequest, match=r"pip install lowbit\[tasks\]"):
        evaluate_tasks(None, None, ["hellaswag"])


def test_metrics_meet_their_errors():
    metrics = {
        "alias": "arc",
        "acc,none": 0.25,
        "acc_stderr,none": 0.01,
        "exact_match,strict": 0.5,
        "exact_match_stderr,strict": "N/A",
        "sample_len": 7,
    }
    assert _estimates(metrics) == {
        "acc": Estimate(0.25, 0.01),
        "exact_match (strict)": Estimate(0.5, None),
    }


@needs_harness
def test_unknown_task_offers_the_nearest():
    with pytest.raises(BadRequest, match=r"no task 'hellaswagg'. Nearest: hellaswag"):
        evaluate_tasks(tiny_model(), byte_tokenizer(), ["hellaswagg"])


@needs_harness
def test_local_task(tmp_path):
    """Which of two letters follows: the score is what the model's own logits say."""
    questions = [{"question": f"{letter} then", "choices": ["x", "y"], "answer": 0} for letter in "abcdefgh"]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "letters.yaml").write_text(
        "task: letters\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        'doc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{answer}}"\n'
        "metric_list: [{metric: acc}]\n"
    )
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("abc" * 40)
    found = evaluate(tmp_path / "model", text=str(tmp_path / "text.txt"), tasks=[str(tmp_path / "letters.yaml")])
    right = [_nats(f"{one['question']} x") < _nats(f"{one['question']} y") for one in questions]
    assert found.tasks["letters"]["acc"].mean == pytest.approx(sum(right) / len(right))
    assert found.tasks["letters"]["acc"].error is not None


def _nats(text):
    ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
    return float(measure_tokens(tiny_model(), ids).nats[0, -1])
