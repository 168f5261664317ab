"""The processes of a Ray that is started here: a signal to the group spares them, and a run ends when one is gone.

And the name under which Ray knows this process.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Self

import psutil

from pipeline.run.interrupt import RayLost, asked_to_end
from pipeline.run.last_words import end_process

SERVICES = ("gcs_server", "raylet")
LOOK_S = 1.0
LOSS_S = 10.0       # for the main thread to end after a loss
SIGNAL_S = 20.0     # and after a signal, which may have gone to Ray too, as systemd and Slurm send it to all processes


@contextmanager
def in_own_groups() -> Iterator[None]:
    """Within it each process that Ray starts leads a process group of its own.

    So a signal to the group of this process, as GNU timeout or a supervisor sends it, does not end Ray before the run.
    """
    from ray._private import services

    library: Any = services
    popen = library.ConsolePopen
    library.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        library.ConsolePopen = popen


def name_entrypoint() -> None:
    """Let Ray note this command with "?" for each byte that is not UTF-8, as paths can have; it would fail at them."""
    from ray._private import utils

    library: Any = utils
    command = " ".join(sys.argv).encode(errors="replace").decode()
    library.get_entrypoint_name = lambda: command


def services_here() -> list[psutil.Process]:
    """The services of Ray that are children of this process."""
    return [child for child in psutil.Process().children() if _name(child) in SERVICES]


class ProcessWatch:
    """Within its `with` block, the main thread raises RayLost when one of the services ends.

    Ray itself would hang for a minute, and then end the process without a word. If the main thread does not leave the
    block soon after that, or after a signal that asked it to end, `say` gets the last words, and the process ends: with
    1, or as after the signal. connected: whether this process is connected to Ray. Enter it in the main thread.
    """

    def __init__(
        self, services: Sequence[psutil.Process], say: Callable[[str], object], last_words: str, *,
        connected: Callable[[], bool], look_s: float = LOOK_S, loss_s: float = LOSS_S, signal_s: float = SIGNAL_S,
        exit_process: Callable[[int], object] = end_process,
    ) -> None:
        self._services, self._names = services, {service.pid: _name(service) for service in services}
        self._say, self._last_words, self._connected = say, last_words, connected
        self._look_s, self._loss_s, self._signal_s, self._exit_process = look_s, loss_s, signal_s, exit_process
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._closing, self._lost = False, ""

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGUSR2, self._raise)
        threading.Thread(target=self._watch, name="watch of Ray", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        signal.signal(signal.SIGUSR2, self._handler)

    def close(self) -> bool:
        """From here on nothing is raised, because the caller ends Ray. Returns whether a service was lost before.

        What is left of Ray is then killed, and must not be asked for anything.
        """
        with self._lock:
            self._closing = True
            lost = self._lost or (self._find_lost() if self._connected() else "")
        if lost:
            self._kill()
        return bool(lost)

    def _watch(self) -> None:
        while not (lost := self._find_lost()) and not asked_to_end():
            if self._ended.wait(self._look_s):
                return
        if lost and not self._closing and not self._connected():
            return                    # someone else has ended Ray
        with self._lock:
            if not self._closing and lost:
                self._lost = lost
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
        if self._ended.wait(self._loss_s if lost else self._signal_s):
            return
        number = asked_to_end()
        why = lost or "Ray does not shut down, so the process ends without it"
        self._say(f"\nfacelake: {'interrupted' if number else 'the run broke'}: {why}. {self._last_words}")
        self._kill()
        self._exit_process(128 + number if number else 1)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._closing and not asked_to_end():
            raise RayLost(self._lost)

    def _find_lost(self) -> str:
        """Which services have ended, in words; nothing if all run."""
        lost = [self._names[service.pid] for service in self._services if not _runs(service)]
        if not lost:
            return ""
        return f"{' and '.join(lost)} of Ray ended, perhaps killed by the system for lack of memory (see dmesg)"

    def _kill(self) -> None:
        for service in self._services:
            with contextlib.suppress(psutil.Error):
                for process in (*service.children(recursive=True), service):
                    with contextlib.suppress(psutil.Error):
                        process.kill()


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
