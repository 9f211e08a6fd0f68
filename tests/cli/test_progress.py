"""Progress: bars for who watches, and for a log file a line now and then, with the time left."""

import pytest

from lowbit.cli import progress
from lowbit.cli.progress import progress_bars


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def said(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_log_file_gets_the_first_a_line_a_minute_and_the_last(clock, capsys):
    with progress_bars() as report:
        for layer in range(1, 401):
            clock.now += 1
            report("quantizing layers", layer, 400)
            report("reading the model", layer * 10**6, 400 * 10**6)
    lines = said(capsys)
    layers = [line for line in lines if line.startswith("quantizing layers: ")]
    assert [line.split()[2] for line in layers] == ["1", "61", "121", "181", "241", "301", "361", "400"]
    assert "reading the model: 100 %" in lines[-1]


def test_time_left_follows_the_speed(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(progress, "Progress", timed(progress.Progress, clock))
    with progress_bars() as report:
        for layer in range(1, 5):
            report("quantizing layers", layer, 10)
            clock.now += 600
    assert said(capsys) == [
        "quantizing layers: 1 of 10",
        "quantizing layers: 2 of 10, 10 min 0 s, 80 min left",
        "quantizing layers: 3 of 10, 20 min 0 s, 70 min left",
        "quantizing layers: 4 of 10, 30 min 0 s, 60 min left",
    ]


def timed(kind, clock):
    """rich's bars by another clock."""
    return lambda *columns, **settings: kind(*columns, get_time=lambda: clock.now, **settings)
