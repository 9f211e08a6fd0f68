"""Runs that die at a journal line."""

import json

from lowbit.pipeline.journal import Journal


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def kill_at(monkeypatch, line, when):
    """Die at a journal line: "before" it is written, in its "middle", or right "after"."""
    record, written = Journal.record, [0]

    def dying(self, kind, name, data):
        written[0] += 1
        if written[0] != line:
            return record(self, kind, name, data)
        if when == "middle":
            with self.path.open("ab") as file:
                file.write(json.dumps({"kind": kind, "name": name}).encode()[:-4])
        if when == "after":
            record(self, kind, name, data)
        raise Killed

    monkeypatch.setattr(Journal, "record", dying)
