"""One line about how far a command is: rewritten in place on a terminal, a new line every 15 s elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

TERMINAL_INTERVAL_S = 0.5
LOG_INTERVAL_S = 15.0
RATE_WINDOW_S = 60.0       # of the rate in the line, so that the start of Ray does not distort the time left
RATE_LEAST_S = 1.0         # reports that come together say nothing of the rate
POLL_S = 2.0
POLL_ENDS_S = 20.0         # for a call to Ray to answer


class Progress:
    """Counts what is done and prints the line when it is time.

    unit: what is counted, "images". describe: the end of the line, from all counts so far. total: None if unknown; then
    the line has no share and no time left.
    """

    def __init__(
        self,
        unit: str,
        describe: Callable[[Mapping[str, int]], str],
        total: int | None = None,
        *,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = 0
        self.counts: Counter[str] = Counter()
        self._steady: float | None = None
        self._ahead = 0                                      # done, but not counted by `add` yet, as far as known
        self._counts_ahead: Counter[str] = Counter()         # of all that is done then
        self._lock = threading.Lock()                        # guards the line: two threads may print it
        self._unit, self._describe, self._total = unit, describe, total
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._now = now
        self._started = self._printed = now()
        self._printed_counts: tuple[int, str] | None = None
        self._first: tuple[float, int] | None = None         # when the first were done, and how many
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, done: int, counts: Mapping[str, int]) -> None:
        """Count so many more as done, and these further counts."""
        with self._lock:
            self.done += done
            self._ahead -= done
            self.counts.update(counts)
            self._note()

    def extend(self, more: int) -> None:
        """So many more are to do than the total said."""
        with self._lock:
            self._total = None if self._total is None else self._total + more

    def passed(self, counts: Mapping[str, int], rate: float | None = None) -> None:
        """So many in all are done, whether or not `add` has counted them: the line and its rate show them.

        counts: as for `describe`; what is done by its unit. rate: of those who do the work, while they have some; for
        `rate_after_start`.
        """
        done = counts.get(self._unit, 0)
        with self._lock:
            self._steady = rate or self._steady
            if done > self._shown:
                self._ahead, self._counts_ahead = min(done, self._total or done) - self.done, Counter(counts)
                self._note()

    def close(self) -> None:
        """Print the last line, unless it is there already. It shows what `add` has counted."""
        with self._lock:
            self._ahead = 0
            if self._terminal or self._printed_counts != self._counts_shown:
                self._print(end="\n")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._now() - self._started

    def rate_after_start(self) -> float | None:
        """Units a second without the start of Ray: as `passed` was told, else since the first were done; or None."""
        if self._steady is not None:
            return self._steady
        if self._first is None or self.done == self._first[1]:
            return None
        return (self.done - self._first[1]) / (self._now() - self._first[0])

    def line(self) -> str:
        """The line as it is now."""
        rate = self._rate()
        shown, counts = self._counts_shown
        parts = [f"{shown:,} {self._unit}", f"{rate:,.1f} {self._unit}/s", counts]
        if self._total is not None:
            share = shown / self._total if self._total else 1.0
            parts[0] = f"{shown:,} of {self._total:,} {self._unit} ({share:.0%})"
            parts.append(f"{_duration((self._total - shown) / rate) if rate else '?'} left")
        return "  ".join(parts)

    @property
    def _counts_shown(self) -> tuple[int, str]:
        return self._shown, self._describe(self._counts_ahead if self._ahead > 0 else self.counts)

    @property
    def _shown(self) -> int:
        return self.done + max(0, self._ahead)

    def _note(self) -> None:
        """Take the number that is done now into the rate, and print the line when it is time."""
        now, shown = self._now(), self._shown
        self._first = self._first or (now, shown)
        self._recent.append((now, shown))
        while len(self._recent) > 2 and now - self._recent[0][0] >= RATE_WINDOW_S:
            self._recent.popleft()
        if now - self._printed >= (TERMINAL_INTERVAL_S if self._terminal else LOG_INTERVAL_S):
            self._print(end="" if self._terminal else "\n")

    def _rate(self) -> float:
        if len(self._recent) > 1 and self._recent[-1][1] > self._recent[0][1]:
            (first, before), (last, after) = self._recent[0], self._recent[-1]
            if last - first >= RATE_LEAST_S:
                return (after - before) / (last - first)
        return self._shown / self.seconds if self.seconds else 0.0

    def _print(self, end: str) -> None:
        self._printed = self._now()
        self._printed_counts = self._counts_shown
        start = "\r\x1b[K" if self._terminal else ""
        self._stream.write(f"{start}{self.line()}{end}")
        self._stream.flush()


@contextmanager
def polling(poll: Callable[[], object], every_s: float = POLL_S) -> Iterator[None]:
    """Within the `with` block, call `poll` every few seconds in a thread.

    Its errors are dropped: it asks Ray, which may be in trouble.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every_s):
            with contextlib.suppress(Exception):
                poll()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
        ended.set()
        thread.join(POLL_ENDS_S)
        with contextlib.suppress(Exception):
            poll()                    # what was done since
    finally:
        ended.set()
        thread.join(POLL_ENDS_S)      # a call into a Ray that shuts down would crash the process


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
