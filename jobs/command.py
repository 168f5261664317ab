"""How a command ends: its exit code, and a line for the user in place of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipeline.errors import UserError
from pipeline.run.interrupt import Interrupted, Stalled, interruptible
from pipeline.text import printable

DONE, BROKEN, REFUSED, TOO_MANY_ERRORS = 0, 1, 2, 3


class Broke(Exception):   # noqa: N818
    """The work ended early; the message says all that the user needs to know."""


def run_command(name: str, run: Callable[[], int | None], *, again: str) -> int:
    """Run a command to its end, whatever that is, and say it; returns the exit code.

    run: returns it too, None for 0. A UserError ends with 2. again: how to go on after anything else.
    """
    with interruptible():
        try:
            return run() or DONE
        except UserError as error:
            say(f"{name}: {error}")
            return REFUSED
        except Interrupted as interrupt:
            say(f"\n{name}: interrupted. {again}")
            return interrupt.exit_code
        except (Broke, Stalled) as error:
            say(f"\n{name}: the run broke: {error}. {again}")
            return BROKEN
        except Exception as error:
            say(f"\n{name}: the run broke. {cause(error)}\n{again}")
            return BROKEN


def say(line: str) -> None:
    """A line for the user, at once; what stands in names moves no cursor."""
    print("\n".join(map(printable, line.split("\n"))), file=sys.stderr, flush=True)


def cause(error: BaseException) -> str:
    """What went wrong, in a line, below the wrappers that Ray puts around it."""
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
