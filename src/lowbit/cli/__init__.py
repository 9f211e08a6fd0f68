"""The command line. Results go to stdout, progress and errors to stderr; exit 0 done, 2 bad request, 1 failed."""

import sys

from transformers.utils.logging import disable_progress_bar

from lowbit.cli.app import app
from lowbit.core.errors import LowbitError


def main() -> None:
    """Run the command line and exit with its code."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own bars, between ours
    try:
        app()
    except LowbitError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"the system refused: {error}. Nothing finished is lost; mend the cause and use --resume.", 1)
    except KeyboardInterrupt:
        _fail("stopped. Go on with --resume.", 130)


def _fail(message: str, code: int) -> None:
    print(f"lowbit: {message}", file=sys.stderr)
    raise SystemExit(code)
