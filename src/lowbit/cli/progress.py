"""Progress with the time left, on stderr: a bar for each phase of the run, or where nobody watches, a line a minute."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from lowbit.pipeline.drive import Progress as Report
from lowbit.report import numbers

# What remains is reckoned by the speed of the last half hour: layers take up to minutes each, those that a resumed run
# has done already take none.
_SPEED_SECONDS = 1800
_LINE_SECONDS = 60
_MOST_COUNTED = 100_000
"""Totals above that are bytes, of which a share says more."""


@contextmanager
def progress_bars() -> Iterator[Report]:
    """A function to call with (what, done, total); every new `what` starts a bar of its own."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), _Amount(), _Time())
    watched = console.is_terminal
    with Progress(*columns, console=console, speed_estimate_period=_SPEED_SECONDS, disable=not watched) as bars:
        tasks: dict[str, TaskID] = {}
        said: dict[str, float] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)
            now = time.monotonic()
            if not watched and (done == total or now - said.get(what, -_LINE_SECONDS) >= _LINE_SECONDS):
                said[what] = now
                task = bars.tasks[tasks[what]]
                console.print(
                    f"{what}: {', '.join(filter(None, (_amount(task), _times(task))))}", highlight=False, soft_wrap=True
                )

        yield report


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_amount(task))


class _Time(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_times(task))


def _amount(task: Task) -> str:
    total = task.total or 0
    return f"{task.percentage:.0f} %" if total > _MOST_COUNTED else f"{task.completed:.0f} of {total:.0f}"


def _times(task: Task) -> str:
    so_far = task.finished_time if task.finished_time is not None else task.elapsed or 0.0
    if so_far < 1:
        return ""
    left = None if task.finished else task.time_remaining
    return numbers.duration(so_far) + ("" if left is None else f", {numbers.rough_duration(left)} left")
