"""SIGINT and SIGTERM as one exception, so that Ctrl-C, `ray job stop` and a spot node's warning end a run alike."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

Handler = Callable[[int, FrameType | None], object] | int | None

ENDING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the run to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


class Stalled(BaseException):
    """Nothing has moved for too long. Not an Exception: Ray, in whose code it is raised, would keep one."""


def _catch_signals() -> None:
    """Make SIGINT and SIGTERM raise Interrupted, once; a second one while ending is ignored.

    A process forked from this one, as torch's loaders are, ends without a word.
    """
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            os._exit(128 + number)
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    for number in ENDING:
        signal.signal(number, interrupt)


def leave(exit_code: int) -> NoReturn:
    """End the process; a Ctrl-C in its last second, while Ray's own end runs, changes nothing."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(exit_code)


class interruptible:  # noqa: N801
    """Within it SIGINT and SIGTERM raise Interrupted; afterwards the handlers are what they were."""

    def __enter__(self) -> None:
        self._before = {number: signal.getsignal(number) for number in ENDING}
        _catch_signals()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class held_back:  # noqa: N801
    """Within it SIGINT and SIGTERM wait for its end: Ray's core, interrupted while it starts, would hang or crash.

    Nobody else's handlers count meanwhile: Ray sets one that exits with code 15.
    """

    def __enter__(self) -> None:
        self._received: list[int] = []
        self._before = {number: signal.getsignal(number) for number in ENDING}
        self._set = signal.signal
        for number in self._before:
            signal.signal(number, lambda number, frame: self._received.append(number))
        signal.signal = self._set_others

    def __exit__(self, *_: object) -> None:
        signal.signal = self._set
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._received:
            signal.alarm(0)       # the C++ of Ray, once it has seen a SIGTERM, aborts three seconds later
            signal.raise_signal(self._received[0])

    def _set_others(self, number: int, handler: Handler) -> Handler:
        return self._before[number] if number in self._before else self._set(number, handler)
