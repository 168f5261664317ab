"""What each process of a pool is doing now, for the watchdog to compare and to print."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

from pipeline.text import printable

SEND_EVERY_S = 2.0
NAMED_URIS = 3
NAMED_PROCESSES = 5     # of a pool

WAITING = "waiting"


class FileReader(Protocol):
    """Something that reads files: the decode stage."""

    @property
    def files_read(self) -> int:
        """Files that have arrived so far."""

    @property
    def reading(self) -> str | None:
        """The uri of the file that it waits for."""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What one process does. `steps` counts finished work: files, calls of a stage, parts."""

    pool: str
    host: str
    pid: int
    doing: str = ""                  # "loading detect", "detect", "writing", `WAITING`
    steps: int = 0
    uris: tuple[str, ...] = ()       # of the images in hand, the first few
    more: int = 0                    # further images in hand
    reading: str | None = None       # the file that it waits for
    working_s: float = 0.0           # from its first block on until the last image passed
    passed: dict[str, int] = field(default_factory=dict)      # its stages so far: "images", "faces", and by status

    @classmethod
    def of_this_process(cls, pool: str) -> ProcessStatus:
        """The status of the calling process, which has done nothing yet."""
        return cls(pool, socket.gethostname(), os.getpid())

    def begins(self, doing: str, uris: Sequence[str] = ()) -> ProcessStatus:
        """The status once this work has begun on the images of these uris."""
        return replace(self, doing=doing, uris=tuple(uris[:NAMED_URIS]), more=max(0, len(uris) - NAMED_URIS))

    def ends(self) -> ProcessStatus:
        """The status once the work is done."""
        return replace(self, doing=WAITING, steps=self.steps + 1, uris=(), more=0)

    def to_json(self) -> bytes:
        """The status as the board keeps it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> ProcessStatus:
        """The status that `to_json` wrote."""
        values = json.loads(content)
        return cls(**{**values, "uris": tuple(values["uris"])})

    @property
    def progress(self) -> ProcessStatus:
        """What changes while the work gets on. A process that dies while it loads, again and again, makes none."""
        return replace(self, pid=0, doing="loading", steps=0) if not self.ready else replace(self, pid=0)

    @property
    def ready(self) -> bool:
        """Whether its models are loaded."""
        return not self.doing.startswith("loading")

    def __str__(self) -> str:
        """`pid 7 on host: detect, with /p/a.jpg, /p/b.jpg and 3 more`."""
        in_hand = f", with {', '.join(map(printable, self.uris))}" if self.uris else ""
        more = f" and {self.more} more" if self.more else ""
        reading = f", reading {printable(self.reading)}" if self.reading else ""
        return f"pid {self.pid} on {self.host}: {self.doing}{in_hand}{more}{reading}"


class StatusReporter:
    """Keeps the status of this process. Once started, a thread sends it every few seconds if it has changed.

    Several threads may work at once; the work that began first is named first.
    """

    def __init__(self, pool: str, send: Callable[[bytes], None]) -> None:
        self._idle = ProcessStatus.of_this_process(pool)      # with the number of finished steps
        self._works: dict[object, tuple[str, Sequence[str]]] = {}
        self._lock = threading.Lock()                         # guards both
        self._sending = threading.Lock()                      # an older status must not come last
        self._began: float | None = None
        self._send = send
        self._sent: ProcessStatus | None = None
        self._files: FileReader | None = None

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        threading.Thread(target=self._keep_sending, name="status", daemon=True).start()

    def follow(self, files: FileReader) -> None:
        """Report also how many files this has read, and which one it waits for."""
        self._files = files

    def begins_block(self) -> None:
        """A block of images has arrived."""
        self._began = self._began or time.monotonic()

    def passed(self, counts: Mapping[str, int]) -> None:
        """So many more have passed the stages, as in `ProcessStatus.passed`."""
        with self._lock:
            working_s = time.monotonic() - (self._began or 0.0)
            passed = dict(Counter(self._idle.passed) + Counter(counts))
            self._idle = replace(self._idle, passed=passed, working_s=working_s)

    @contextmanager
    def doing(self, work: str, uris: Sequence[str] = ()) -> Iterator[None]:
        """Report that this work goes on inside the `with` block, on the images of these uris."""
        this = object()
        with self._lock:
            self._works[this] = work, uris
        try:
            yield
        finally:
            with self._lock:
                del self._works[this]
                self._idle = self._idle.ends()

    def status(self) -> ProcessStatus:
        """The status now."""
        with self._lock:
            idle, works = self._idle, list(self._works.values())
        if not works:
            return idle
        names = dict.fromkeys(work for work, _ in works)
        return idle.begins(", ".join(names), [uri for _, uris in works for uri in uris])

    def send(self) -> None:
        """Send the status if it has changed."""
        with self._sending:
            status = self.status()
            if self._files:
                status = replace(status, steps=status.steps + self._files.files_read, reading=self._files.reading)
            if status != self._sent:
                self._send(status.to_json())
                self._sent = status

    def _keep_sending(self) -> None:
        while True:
            self.send()
            time.sleep(SEND_EVERY_S)


def describe_pool(pool: str, planned: str, statuses: Sequence[ProcessStatus]) -> list[str]:
    """Lines for the user: what was planned for a pool, how many of its processes are ready, and what each one does."""
    of_pool = [status for status in statuses if status.pool == pool]
    lines = [f"  {planned}: {sum(status.ready for status in of_pool)} ready"]
    lines += [f"    {status}" for status in of_pool[:NAMED_PROCESSES]]
    if len(of_pool) > NAMED_PROCESSES:
        lines.append(f"    and {len(of_pool) - NAMED_PROCESSES} more")
    return lines
