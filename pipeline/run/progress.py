"""One line that says how far the job is: on a terminal it is written over, elsewhere a new one comes now and then."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from pipeline.batch import GOOD, Status

TERMINAL_INTERVAL_S = 0.5
LOG_INTERVAL_S = 15.0


class Progress:
    """Counts receipts and prints the line.

    total: images of this run. The rate is that of the last minutes, so that the start of Ray does not weigh on the
    time left.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._started = self._printed = time.monotonic()
        self._recent: list[tuple[float, int]] = []
        self._first: tuple[float, int] | None = None
        self.images = self.faces = self._printed_images = 0
        self.by_status = {status.value: 0 for status in Status}

    def add(self, receipt: dict[str, int]) -> None:
        """Count one receipt of the sink and print the line if it is time."""
        self.images += receipt["images"]
        self.faces += receipt["faces"]
        for status in self.by_status:
            self.by_status[status] += receipt[status]
        now = time.monotonic()
        self._first = self._first or (now, self.images)
        self._recent = [(when, count) for when, count in self._recent if now - when < 120] + [(now, self.images)]
        if now - self._printed >= (TERMINAL_INTERVAL_S if self._terminal else LOG_INTERVAL_S):
            self._printed = now
            self._print(end="" if self._terminal else "\n")

    def close(self) -> None:
        """Print the last line, unless it stands there."""
        if self._terminal or self._printed_images != self.images or not self.images:
            self._print(end="\n")

    @property
    def failures(self) -> int:
        """Images that are neither ok nor no_face."""
        return self.images - sum(self.by_status[status] for status in GOOD)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def rate_after_start(self) -> float | None:
        """Images a second from the first receipt to now, so without the start of Ray and the models."""
        if self._first is None or self.images == self._first[1]:
            return None
        return (self.images - self._first[1]) / (time.monotonic() - self._first[0])

    def line(self) -> str:
        """The line as it is now."""
        share = self.images / self._total if self._total else 1.0
        rate = self._rate()
        left = _duration((self._total - self.images) / rate) if rate else "?"
        return (
            f"{self.images:,} of {self._total:,} images ({share:.0%})  {rate:.1f} images/s  {self.faces:,} faces  "
            f"{self.failures:,} failed  {left} left"
        )

    def _rate(self) -> float:
        if len(self._recent) > 1 and self._recent[-1][1] > self._recent[0][1]:
            (first, before), (last, after) = self._recent[0], self._recent[-1]
            return (after - before) / (last - first) if last > first else 0.0
        return self.images / self.seconds if self.seconds else 0.0

    def _print(self, end: str) -> None:
        self._printed_images = self.images
        start = "\r\x1b[K" if self._terminal else ""
        self._stream.write(f"{start}{self.line()}{end}")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
