"""The command line. Results go to stdout, progress and errors to stderr; exit 0 done, 2 bad request, 1 failed.

Modules here that hold commands import the library inside them: help and wrong options are answered at once.
"""

import sys

from lowbit.cli.app import app
from lowbit.core.errors import LowbitError
from lowbit.integrations.discovery import import_after


def main() -> None:
    """Run the command line and exit with its code."""
    import_after("transformers.modeling_utils", "lowbit.cli.quiet")
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
