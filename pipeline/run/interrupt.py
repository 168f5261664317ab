"""SIGINT and SIGTERM as one exception: Ctrl-C, `ray job stop` and the warning of a spot node end a run alike."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any] | int | None

ENDING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the run to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


class Stalled(BaseException):
    """The run made no progress for too long. Not an Exception, because it is raised inside Ray, which catches those."""


class RayLost(BaseException):
    """A process of Ray ended. Not an Exception for the same reason."""


_signals: list[int] = []      # that asked this process to end


def asked_to_end() -> int | None:
    """The first signal that asked this process to end, within `interruptible`; None without one."""
    return _signals[0] if _signals else None


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Within it the first SIGINT or SIGTERM raises Interrupted, and later ones are ignored; the old handlers come back.

    Gives a list that the signal's number is added to, for `not_replaced`. A process forked within it, such as a loader
    of torch, exits without output instead. After the signal Python does not print the errors that it ignores: an object
    of a library whose construction was interrupted, as Ray's Dataset, has such an error when it is freed.
    """
    owner = os.getpid()
    show_ignored = sys.unraisablehook
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            os._exit(128 + number)
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        received.append(number)
        _signals.append(number)
        sys.unraisablehook = lambda _: None
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.clear()
        if received:
            gc.collect()                  # frees what refers to itself
            sys.unraisablehook = show_ignored


@contextmanager
def not_replaced(received: list[int]) -> Iterator[None]:
    """Raise Interrupted where a library raises an error in its place, as DuckDB does: "Query interrupted".

    received: the list that `interruptible` gives.
    """
    try:
        yield
    except Exception as error:
        if received:
            raise Interrupted(received[0]) from error
        raise


@contextmanager
def held_back() -> Iterator[None]:
    """Within it SIGINT and SIGTERM wait for its end, because the core of Ray hangs or crashes if it is interrupted.

    Handlers that others set for them meanwhile are dropped: Ray sets one that exits with code 15.
    """
    received: list[int] = []
    before: dict[int, Handler] = {number: signal.getsignal(number) for number in ENDING}
    set_handler = signal.signal

    def set_others(signalnum: int, handler: Handler) -> Handler:
        return before[signalnum] if signalnum in before else set_handler(signalnum, handler)

    def keep(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _signals.append(number)

    for number in before:
        set_handler(number, keep)
    signal.signal = set_others
    try:
        with _without_alarms():
            yield
    finally:
        signal.signal = set_handler
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.alarm(0)       # that of Ray, if it was set after the signal
            signal.raise_signal(received[0])


@contextmanager
def _without_alarms() -> Iterator[None]:
    """Within it every signal ends the alarm that is set, at once, by a thread.

    After a SIGTERM the C++ of Ray sets one that aborts the process in three seconds. The start of Ray may take longer,
    and Python's handlers run only between its steps.
    """
    told, tells = socket.socketpair()
    tells.setblocking(False)

    def end_alarms() -> None:
        while told.recv(1):
            signal.alarm(0)

    thread = threading.Thread(target=end_alarms, name="no alarms", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        tells.close()
        thread.join()
        told.close()


_at_once = threading.Event()


def leave_at_once() -> None:
    """Let `leave` skip what Python does at its end, because a Ray whose processes are gone would hang in it."""
    _at_once.set()


def leave(exit_code: int) -> NoReturn:
    """Exit. SIGINT and SIGTERM are ignored from here on, while Ray shuts down."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    if _at_once.is_set():
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
