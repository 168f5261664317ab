"""Ends a run that makes no progress, and prints what waits for what.

A thread beside the driver takes a snapshot again and again: the parts that are committed, the nodes, the status of
every process. If the snapshot stays the same for too long, the thread prints an explanation and makes the main thread
raise `Stalled`.

Ray has a check of its own (`execution_no_progress_timeout_s`). It names no reason, it ignores files that arrive and
nodes that start, and it runs in the very loop that may hang.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Self, TypeVar

from pipeline.run.interrupt import Stalled
from pipeline.run.last_words import end_process

SHUTDOWN_S = 60.0       # for the main thread and Ray to end after a stall
ANSWER_S = 20.0         # for Ray to answer

T = TypeVar("T")


class Watchdog:
    """Within its `with` block, the main thread raises Stalled after timeout_s without progress; 0 waits for ever.

    snapshot: an unchanged snapshot means no progress. explain: lines on what waits for what, given to `say`.
    Enter it in the main thread. If the shutdown hangs too, it says last_words and ends the process with exit code 1.
    """

    def __init__(
        self,
        timeout_s: float,
        say: Callable[[str], None],
        last_words: str,
        snapshot: Callable[[], object],
        explain: Callable[[], list[str]],
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        exit_process: Callable[[int], object] = end_process,
    ) -> None:
        self._timeout_s = timeout_s
        self._say, self._last_words = say, last_words
        self._snapshot, self._explain = snapshot, explain
        self._now, self._sleep, self._exit_process = now, sleep, exit_process
        self._ended, self._stalled = threading.Event(), False
        self._call: threading.Thread | None = None      # the call to Ray that runs now
        self._lock = threading.Lock()                   # guards `_ended`: after it nothing is raised or asked of Ray

    def __enter__(self) -> Self:
        if self._timeout_s:
            self._handler = signal.signal(signal.SIGUSR1, self._raise)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended.set()
        if self._timeout_s:
            signal.signal(signal.SIGUSR1, self._handler)
        if self._call:
            self._call.join(ANSWER_S)      # a call into a Ray that shuts down would crash the process

    @property
    def _reason(self) -> str:
        return f"no progress for {self._timeout_s:g} s"

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self._stalled:      # else the signal is someone else's, as Slurm can be told to send it
            self._stalled = False
            raise Stalled(f"{self._reason} (--stall-timeout)")

    def _watch(self) -> None:
        last: object = None
        changed = self._now()
        while self._now() - changed < self._timeout_s:
            self._sleep(min(self._timeout_s / 20, 10.0))
            snapshot = self._ask(self._snapshot, last)
            if self._ended.is_set():
                return
            if snapshot != last:
                last, changed = snapshot, self._now()
        lines = self._ask(self._explain, ["  Ray does not answer"])
        with self._lock:
            if self._ended.is_set():
                return
            self._stalled = True
            for line in [f"\nfacelake: {self._reason}. What waits for what:", *lines]:
                self._say(line)
            # The main thread waits for a lock inside Ray. Only a signal to that thread wakes it.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        self._sleep(SHUTDOWN_S)
        self._say(f"facelake: Ray does not shut down either; the process ends without it. {self._last_words}")
        self._exit_process(1)

    def _ask(self, call: Callable[[], T], otherwise: T) -> T:
        """The result of the call; `otherwise` if it raises or takes longer than ANSWER_S."""
        answer = [otherwise]

        def run() -> None:
            with contextlib.suppress(Exception):      # a Ray in trouble raises many kinds
                answer[0] = call()

        with self._lock:
            if self._ended.is_set():
                return otherwise
            self._call = threading.Thread(target=run, name="watchdog asks Ray", daemon=True)
            self._call.start()
        self._call.join(ANSWER_S)
        return answer[0]
