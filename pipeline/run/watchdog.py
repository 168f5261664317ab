"""Ends a run in which nothing moves any more, and says what waits for what.

Every process of a pool reports what it does (`Reporter`). A thread beside the driver (`Watchdog`) looks at these
reports, at the parts that were committed and at the nodes there are; when nothing of that has changed for a while it
explains what it sees and makes the main thread raise. Ray's own guard (`execution_no_progress_timeout_s`) knows no
reasons, takes neither a file that has arrived nor a node that has started for progress, and lives in the loop that it
guards.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import FrameType
from typing import Any, Self

from pipeline.batch import FaceBatch, ImageBatch, TodoRow
from pipeline.run.interrupt import Stalled
from pipeline.run.pool import StageBuilders
from pipeline.stages.decode import Decode
from pipeline.text import printable

REPORT_S = 2.0          # how often a process looks whether it has something new to report
GIVE_UP_S = 60.0        # that the main thread and Ray have to end in
ANSWER_S = 20.0         # that Ray has to answer in
NAMED_URIS = 3
NAMED_PROCESSES = 5     # of a pool

WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Report:
    """What a process of a pool does. `steps` counts what it has brought to its end: files, stages, parts."""

    pool: str
    host: str
    pid: int
    doing: str = ""                  # "loading detect", "detect", "writing", `WAITING`
    steps: int = 0
    uris: tuple[str, ...] = ()       # of the images in hand, the first few
    more: int = 0                    # images in hand besides
    reading: str | None = None       # the file that is waited for

    def begins(self, doing: str, uris: Sequence[str] = ()) -> Report:
        """The report when this is begun, with the images of these uris in hand."""
        more = max(0, len(uris) - NAMED_URIS)
        return replace(self, doing=doing, uris=tuple(uris[:NAMED_URIS]), more=more)

    def ends(self) -> Report:
        """The report when that is done."""
        return replace(self, doing=WAITING, steps=self.steps + 1, uris=(), more=0)

    def to_json(self) -> bytes:
        """As it travels."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(content: bytes) -> Report:
        """The report that was sent."""
        values = json.loads(content)
        return Report(**{**values, "uris": tuple(values["uris"])})

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


class Reporter:
    """Keeps the report of one process; a thread sends it whenever it has changed. Can be pickled until it starts."""

    def __init__(self, pool: str, send: Callable[[bytes], None], *, every_s: float = REPORT_S) -> None:
        self._report = Report(pool, "", 0)
        self._send = send
        self._every_s = every_s
        self._reading: Callable[[], tuple[int, str | None]] = _reads_nothing
        self._sent: Report | None = None

    def start(self) -> None:
        """Begin to send, unless that has begun."""
        if not self._report.pid:
            self._report = replace(self._report, host=socket.gethostname(), pid=os.getpid())
            threading.Thread(target=self._keep_sending, name="reports", daemon=True).start()

    def reads(self, reading: Callable[[], tuple[int, str | None]]) -> None:
        """From now on ask this how many files were read, and the uri of the one that is waited for."""
        self._reading = reading

    def begins(self, doing: str, uris: Sequence[str] = ()) -> None:
        """This is being done now, with the images of these uris in hand."""
        self._report = self._report.begins(doing, uris)

    def ends(self) -> None:
        """It is done."""
        self._report = self._report.ends()

    def send(self) -> None:
        """Send the report if it has changed."""
        report, (files, reading) = self._report, self._reading()
        report = replace(report, steps=report.steps + files, reading=reading)
        if report != self._sent:
            self._send(report.to_json())
            self._sent = report

    def _keep_sending(self) -> None:
        while True:
            self.send()
            time.sleep(self._every_s)


def report_stages(builders: StageBuilders, stages: Sequence[str], reporter: Reporter) -> StageBuilders:
    """The builders of these stages; what they build says to the reporter what it does."""
    return {name: partial(_build, builders[name], name, reporter) for name in stages}


def _build(builder: Callable[[int], Any], name: str, reporter: Reporter, threads: int) -> Callable[[Any], Any]:
    reporter.start()
    reporter.begins(f"loading {name}")
    stage = builder(threads)
    reporter.ends()
    if isinstance(stage, Decode):
        reporter.reads(lambda: (stage.files_read, stage.reading))
    return partial(_decode if name == "decode" else _call, stage, name, reporter)


def _decode(stage: Any, name: str, reporter: Reporter, rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
    batches, done = iter(stage(rows)), 0
    while True:
        reporter.begins(name, [row.uri for row in rows[done:]])
        batch = next(batches, None)
        reporter.ends()
        if batch is None:
            return
        done += len(batch)
        yield batch
        del batch        # its pixels go before the next ones are waited for


def _call(stage: Any, name: str, reporter: Reporter, batch: ImageBatch | FaceBatch) -> FaceBatch:
    reporter.begins(name, [record.uri for record in batch.records])
    try:
        return stage(batch)
    finally:
        reporter.ends()


class Watchdog:
    """Ends a run when nothing moves for timeout_s, until the end of the `with` block; 0 waits for ever.

    look: what shows that the run lives; that it has changed is what counts. explain: lines on what waits for what.
    say: gets them. last_words: said when not even the end comes to its end and the process is left with exit code 1.
    Enter it in the main thread; there it raises Stalled.
    """

    def __init__(
        self,
        timeout_s: float,
        say: Callable[[str], None],
        last_words: str,
        look: Callable[[], object],
        explain: Callable[[], list[str]],
        *,
        give_up_s: float = GIVE_UP_S,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._timeout_s = timeout_s
        self._say, self._last_words = say, last_words
        self._look, self._explain = look, explain
        self._give_up_s, self._leave = give_up_s, leave
        self._ended = False
        self._call: threading.Thread | None = None      # to Ray, that is under way
        self._lock = threading.Lock()     # held while it is ended: nothing is raised or asked of Ray after that

    def __enter__(self) -> Self:
        if self._timeout_s:
            signal.signal(signal.SIGUSR1, self._raise)
            threading.Thread(target=self._keep_looking, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
        if self._call:
            self._call.join(ANSWER_S)      # a call into a Ray that is shut down meanwhile crashes the process

    def _raise(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise Stalled(f"nothing has moved for {self._timeout_s:g} s (--stall-timeout)")

    def _keep_looking(self) -> None:
        seen, since = None, time.monotonic()
        while time.monotonic() - since < self._timeout_s:
            time.sleep(min(self._timeout_s / 20, 10.0))
            now = self._ask(self._look, seen)
            if self._ended:
                return
            if now != seen:
                seen, since = now, time.monotonic()
        explained = self._ask(self._explain, ["  Ray does not answer"])
        with self._lock:
            if self._ended:
                return
            self._say(f"\nfacelake: nothing has moved for {self._timeout_s:g} s. What waits for what:")
            for line in explained:
                self._say(line)
            # The main thread waits in a lock of Ray's, from which only a signal to that very thread wakes it.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        time.sleep(self._give_up_s)
        self._say(f"facelake: Ray does not end either; left as it is. {self._last_words}")
        self._leave(1)

    def _ask(self, call: Callable[[], Any], otherwise: Any) -> Any:
        """What the call returns, or the other if it raises or does not come back in time; it is left behind then."""
        answer = [otherwise]

        def run() -> None:
            with contextlib.suppress(Exception):      # a Ray in trouble raises many kinds
                answer[0] = call()

        with self._lock:
            if self._ended:
                return otherwise
            self._call = threading.Thread(target=run, name="watchdog asks Ray", daemon=True)
            self._call.start()
        self._call.join(ANSWER_S)
        return answer[0]


def explain_pool(pool: str, planned: str, reports: Sequence[Report]) -> list[str]:
    """What was planned of a pool, in words, how many of its processes are ready, and what each of them does."""
    of_pool = [report for report in reports if report.pool == pool]
    lines = [f"  {planned}: {sum(report.ready for report in of_pool)} ready"]
    lines += [f"    {report}" for report in of_pool[:NAMED_PROCESSES]]
    if len(of_pool) > NAMED_PROCESSES:
        lines.append(f"    and {len(of_pool) - NAMED_PROCESSES} more")
    return lines


def _reads_nothing() -> tuple[int, str | None]:
    return 0, None
