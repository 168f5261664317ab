"""One line about how far a command is: rewritten in place on a terminal, a new line every 15 s elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TextIO

TERMINAL_INTERVAL_S = 0.5
LOG_INTERVAL_S = 15.0
RATE_WINDOW_S = 120.0      # of the rate in the line, so that the start of Ray does not distort the time left


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
        self._unit, self._describe, self._total = unit, describe, total
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._now = now
        self._started = self._printed = now()
        self._printed_done: int | None = None
        self._first: tuple[float, int] | None = None         # when the first count came, and how many were done then
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, done: int, counts: Mapping[str, int]) -> None:
        """Count so many more as done, and these further counts."""
        self.done += done
        self.counts.update(counts)
        now = self._now()
        self._first = self._first or (now, self.done)
        self._recent.append((now, self.done))
        while now - self._recent[0][0] >= RATE_WINDOW_S:
            self._recent.popleft()
        if now - self._printed >= (TERMINAL_INTERVAL_S if self._terminal else LOG_INTERVAL_S):
            self._print(end="" if self._terminal else "\n")

    def close(self) -> None:
        """Print the last line, unless it is there already."""
        if self._terminal or self._printed_done != self.done:
            self._print(end="\n")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._now() - self._started

    def rate_after_start(self) -> float | None:
        """Units a second from the first `add` on, so without the start of Ray and the models; None until the second."""
        if self._first is None or self.done == self._first[1]:
            return None
        return (self.done - self._first[1]) / (self._now() - self._first[0])

    def line(self) -> str:
        """The line as it is now."""
        rate = self._rate()
        parts = [f"{self.done:,} {self._unit}", f"{rate:,.1f} {self._unit}/s", self._describe(self.counts)]
        if self._total is not None:
            share = self.done / self._total if self._total else 1.0
            parts[0] = f"{self.done:,} of {self._total:,} {self._unit} ({share:.0%})"
            parts.append(f"{_duration((self._total - self.done) / rate) if rate else '?'} left")
        return "  ".join(parts)

    def _rate(self) -> float:
        if len(self._recent) > 1 and self._recent[-1][1] > self._recent[0][1]:
            (first, before), (last, after) = self._recent[0], self._recent[-1]
            return (after - before) / (last - first) if last > first else 0.0
        return self.done / self.seconds if self.seconds else 0.0

    def _print(self, end: str) -> None:
        self._printed, self._printed_done = self._now(), self.done
        start = "\r\x1b[K" if self._terminal else ""
        self._stream.write(f"{start}{self.line()}{end}")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
