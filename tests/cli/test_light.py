"""Help, the version and wrong options are answered without the library behind them, which takes seconds to import."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lowbit.cli.app import app
from lowbit.exchange import EXPORTS

ASKS = """
import sys
from lowbit.cli import main

sys.argv = ["lowbit", *sys.argv[1:]]
try:
    main()
except SystemExit as stopped:
    loaded = {"torch", "transformers", "numba", "jinja2", "matplotlib"} & sys.modules.keys()
    print(f"exit {stopped.code or 0}", *sorted(loaded))
"""


def exit_and_imports(*arguments):
    done = subprocess.run([sys.executable, "-c", ASKS, *arguments], capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


def test_help_version_and_typing_errors_import_nothing_heavy():
    assert exit_and_imports("--help") == "exit 0"
    assert exit_and_imports("--version") == "exit 0"
    assert exit_and_imports("quantize", "--help") == "exit 0"
    assert exit_and_imports("quantize", "--wrong") == "exit 2"


@pytest.mark.parametrize("arguments", [("recipes",), ("recipes", "optq"), ("recipes", "--json")])
def test_recipes_are_shown_without_transformers(arguments):
    shown = exit_and_imports(*arguments).split()
    assert shown[:2] == ["exit", "0"]
    assert "transformers" not in shown


def test_every_command_has_help():
    for command in COMMANDS:
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert "--help" in shown.output


def test_export_names_every_format_it_writes():
    shown = CliRunner().invoke(app, ["export", "--help"], terminal_width=300).output
    assert all(format in shown for format in EXPORTS)
