"""The command line. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 2 bad request, 1 failed; 128 and the signal's number where Ctrl-C (130) or SIGTERM (143) stopped it.

Modules here that hold commands import the library inside them: help and wrong options are answered at once.
"""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from lowbit.cli.app import app
from lowbit.core.errors import LowbitError
from lowbit.integrations.discovery import import_after

_NO_MEMORY = "can't allocate memory"
"""What a RuntimeError of torch says where the processor's memory has run out; it has no exception of its own."""


class Stopped(BaseException):
    """A signal, the argument, asked the process to end. Not KeyboardInterrupt: typer ends that without a word."""


def main() -> None:
    """Run the command line and exit with its code."""
    import_after("transformers.modeling_utils", "lowbit.cli.quiet")
    try:
        with _listening():
            app()
    except LowbitError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"the system refused: {error}. Nothing finished is lost. Mend the cause; {_way_on()}", 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _NO_MEMORY not in str(error):
            raise
        _fail(f"memory ran out. Nothing finished is lost. Free some or use a larger machine; {_way_on()}", 1)
    except Stopped as stopped:
        _fail(f"stopped. Nothing finished is lost; {_way_on()}", 128 + stopped.args[0])


@contextmanager
def _listening() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM raise Stopped, unless whoever started the process has them ignored."""
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


def _way_on() -> str:
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    resume = ["--resume"] if arguments[:1] == ["quantize"] else []
    return f"to go on: {shlex.join(['lowbit', *arguments, *resume])}"


def _fail(message: str, code: int) -> NoReturn:
    print(f"lowbit: {message}", file=sys.stderr)
    raise SystemExit(code)
