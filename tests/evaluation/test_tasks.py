"""Tasks through lm-eval: what its results become, and a run on a local task where it is installed."""

import importlib.util
import json

import pytest
import torch

import lowbit
from evaluation.models import byte_tokenizer, tiny_model
from exchange.folders import checkpoint
from lowbit.core.errors import BadRequest
from lowbit.evaluation import Estimate, evaluate
from lowbit.evaluation.tasks import Tasks, _estimates
from lowbit.evaluation.tokens import measure_tokens
from lowbit.recipes import rtn

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed (pip install lowbit[tasks])")


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_harness():
    with pytest.raises(BadRequest, match=r"pip install lowbit\[tasks\]"):
        Tasks.find(["hellaswag"])


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
        Tasks.find(["hellaswagg"])


QUESTIONS = [{"question": f"{letter} then", "choices": ["x", "y"], "answer": 0} for letter in "abcdefgh"]
TASK = """task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def task(tmp_path):
    """Which of two letters follows?"""
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (tmp_path / "letters.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    (tmp_path / "text.txt").write_text("abc" * 40)
    return tmp_path / "letters.yaml"


@needs_harness
@pytest.mark.parametrize("quantized", [False, True], ids=["dense", "quantized"])
def test_the_score_of_a_local_task_is_what_the_logits_say(task, tmp_path, quantized):
    if quantized:
        checkpoint(tmp_path / "model", rtn(bits=3))
        model = lowbit.load(tmp_path / "model", dtype=torch.float32).dequantize()
    else:
        model = tiny_model()
        model.save_pretrained(tmp_path / "model")
        byte_tokenizer().save_pretrained(tmp_path / "model")
    found = evaluate(tmp_path / "model", text=str(tmp_path / "text.txt"), tasks=[str(task)]).tasks["letters"]["acc"]
    right = [_nats(model, f"{one['question']} x") < _nats(model, f"{one['question']} y") for one in QUESTIONS]
    assert found.mean == pytest.approx(sum(right) / len(right))
    assert found.error is not None


def no_data(task):
    (task.parent / "data.jsonl").unlink()


def no_yaml(task):
    task.write_text("task: letters\n - [")


def other_fields(task):
    task.write_text(task.read_text().replace("choices", "answers"))


@needs_harness
@pytest.mark.parametrize(
    ("damage", "message"),
    [(no_data, r"letters cannot be run.*data\.jsonl"), (no_yaml, "must be YAML"), (other_fields, "'answers'")],
)
def test_a_task_that_cannot_be_run_is_refused_by_name(task, damage, message):
    damage(task)
    with pytest.raises(BadRequest, match=message):
        Tasks.find([str(task)]).run(tiny_model(), byte_tokenizer())


def _nats(model, text):
    ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
    return float(measure_tokens(model, ids).nats[0, -1])
