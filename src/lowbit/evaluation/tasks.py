"""Accuracy on tasks (hellaswag, mmlu, ...) through EleutherAI's lm-evaluation-harness, an extra of lowbit.

Tasks, prompts and scores are the harness's own, so figures compare with published ones; the model is the one that is
already loaded. The harness fetches task data from the hub, or reads it where a task file names local data.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lowbit.core.errors import BadRequest
from lowbit.evaluation.records import Estimate


def evaluate_tasks(model: Any, tokenizer: Any, tasks: Sequence[str]) -> Mapping[str, Mapping[str, Estimate]]:
    """Metrics by task, then by name: `acc`, `acc_norm`, ...

    Args:
        tasks: names that the harness knows, or paths of task files; a file NAME.yaml holds the task NAME.

    Raises BadRequest without the harness, for a task that it does not know (nearest names offered) and where the
    task's data cannot be read.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise BadRequest(f"Tasks need lm-eval ({error}). Run `pip install lowbit[tasks]`.") from error
    files = [Path(task) for task in tasks if Path(task).is_file()]
    manager = TaskManager(include_path=[str(folder) for folder in {file.parent for file in files}] or None)
    names = [Path(task).stem if Path(task) in files else task for task in tasks]
    for name in names:
        _check_known(name, manager.all_tasks)
    try:
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer), tasks=names, task_manager=manager, log_samples=False
        )
    except (OSError, ValueError) as error:
        raise BadRequest(f"Tasks {', '.join(names)} cannot be run: {error}") from error
    return {task: _estimates(metrics) for task, metrics in found["results"].items()}


def _check_known(name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = ", ".join(get_close_matches(name, known)) or "see `lm-eval ls tasks`"
        raise BadRequest(f"lm-eval knows no task {name!r}. Nearest: {near}.")


def _estimates(metrics: Mapping[str, Any]) -> dict[str, Estimate]:
    """The harness names a metric `acc,none` (metric, filter) and its error `acc_stderr,none`."""
    found = {}
    for key, value in metrics.items():
        name, _, kind = key.partition(",")
        if kind and isinstance(value, (int, float)) and not name.endswith("_stderr"):
            error = metrics.get(f"{name}_stderr,{kind}")
            label = name if kind == "none" else f"{name} ({kind})"
            found[label] = Estimate(float(value), float(error) if isinstance(error, float) else None)
    return found
