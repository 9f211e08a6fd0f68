"""Accuracy on tasks (hellaswag, mmlu, ...) through EleutherAI's lm-evaluation-harness, an extra of lowbit.

Tasks, prompts and scores are the harness's own, so figures compare with published ones; the model is the one that is
already loaded. The harness fetches task data from the hub, or reads it where a task file names local data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from lowbit.core.errors import BadRequest
from lowbit.evaluation.records import Estimate


@dataclass(frozen=True)
class Tasks:
    """Tasks that the harness knows. manager: the harness's own, which knows local files too."""

    names: tuple[str, ...]
    manager: Any

    @classmethod
    def find(cls, tasks: Sequence[str]) -> "Tasks":
        """The tasks of these names, or of these files; a file NAME.yaml holds the task NAME.

        Raises BadRequest without the harness, and for a task that it does not know (nearest names offered).
        """
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise BadRequest(f"Tasks need lm-eval ({error}). Run `pip install lowbit[tasks]`.") from error
        files = {task: Path(task) for task in tasks if Path(task).is_file()}
        manager = TaskManager(include_path=[str(folder) for folder in {file.parent for file in files.values()}] or None)
        known = manager.all_tasks
        for task in tasks:
            if task in files and files[task].stem not in known:
                raise BadRequest(
                    f"{task} holds no task {files[task].stem!r}: it must be YAML with a line `task: NAME`."
                )
            if task not in files and task not in known:
                near = ", ".join(get_close_matches(task, known)) or "see `lm-eval ls tasks`"
                raise BadRequest(f"lm-eval knows no task {task!r}. Nearest: {near}.")
        return cls(tuple(files[task].stem if task in files else task for task in tasks), manager)

    def run(self, model: Any, tokenizer: Any) -> dict[str, dict[str, Estimate]]:
        """Metrics by task, then by name: `acc`, `acc_norm`, ... Raises BadRequest where a task's data, metric or
        template is not what it should be."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        try:
            found = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer),
                tasks=list(self.names),
                task_manager=self.manager,
                log_samples=False,
            )
        except (OSError, ValueError, LookupError, TemplateError) as error:
            raise BadRequest(
                f"Tasks {', '.join(self.names)} cannot be run: {type(error).__name__}: {error}. See that the data is "
                "there and that the task names fields and metrics which exist."
            ) from error
        return {task: _estimates(metrics) for task, metrics in found["results"].items()}


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
