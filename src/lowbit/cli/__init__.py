"""The command line. Results go to stdout, progress and errors to stderr; exit 0 done, 2 bad request, 1 failed."""

import sys

import click

from lowbit.core.errors import LowbitError


def main() -> None:
    """Run the command line and exit with its code."""
    from lowbit.cli.app import app  # after the imports that a failing terminal could not report

    try:
        app(standalone_mode=False)
    except LowbitError as error:
        print(f"lowbit: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    except (click.Abort, KeyboardInterrupt):
        print("lowbit: stopped.", file=sys.stderr)
        raise SystemExit(130) from None
