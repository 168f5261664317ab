"""How a command ends: an exit code, and a message for the user instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from jobs.streams import keep_streams
from pipeline.errors import EnvironmentFault, UserError
from pipeline.run.interrupt import Interrupted, RayLost, Stalled, interruptible, leave, not_replaced
from pipeline.text import printable

DONE, BROKEN, REFUSED, TOO_MANY_ERRORS = 0, 1, 2, 3


class Broke(Exception):   # noqa: N818
    """The work ended early. The message is complete: it needs no traceback."""


def run_process(main: Callable[[], int]) -> NoReturn:
    """Run a command as the whole of this process, which ends with the code that `main` returns."""
    keep_streams()
    leave(main())


def run_command(name: str, run: Callable[[], int | None], *, again: str) -> int:
    """Run a command, and print how it ended. Returns the exit code.

    run: returns the exit code, or None for 0. A UserError gives 2. An EnvironmentFault, here or in a process of Ray,
    gives 1. again: printed after every other error and after an interruption; it says how to continue.
    """
    with interruptible() as received:
        try:
            check_folder()
            with not_replaced(received):
                return run() or DONE
        except UserError as error:
            say(f"{name}: {error}")
            return REFUSED
        except Interrupted as interrupt:
            say(f"\n{name}: interrupted. {again}")
            return interrupt.exit_code
        except (Broke, Stalled, RayLost) as error:
            say(f"\n{name}: the run broke: {error}. {again}")
            return BROKEN
        except Exception as error:
            fault = original(error)
            if isinstance(fault, EnvironmentFault):
                say(f"\n{name}: the run broke: {fault}. {again}")
            else:
                say(f"\n{name}: the run broke. {cause(error)}\n{again}")
            return BROKEN


def check_folder() -> None:
    """Raises UserError where the current folder was deleted: no relative path can be found, and Ray does not start."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder no longer exists; change to another one") from None


def say(line: str) -> None:
    """Print a message for the user. Control characters, as file names can have them, are escaped."""
    print("\n".join(map(printable, line.split("\n"))), file=sys.stderr, flush=True)


def say_progress(line: str) -> None:
    """Show a line in the place of the last one, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def end_progress() -> None:
    """Begin a new line after those of `say_progress`."""
    if sys.stderr.isatty():
        print(file=sys.stderr)


def original(error: BaseException) -> BaseException:
    """The error that Ray has wrapped in others."""
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    return error


def cause(error: BaseException) -> str:
    """The first line of the original error, without the errors that Ray wraps around it."""
    error = original(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
