"""Metrics for Prometheus, through Ray's own exporter. Without Ray nothing happens.

Every node of a cluster shows them at /metrics of its metrics port. Ray puts `ray_` before the names:

    facelake_images_total{status}          images committed
    facelake_faces_total                   faces committed
    facelake_bytes_total                   bytes of the image files committed
    facelake_images_passed_total{pool}     images that have passed the stages of a pool, committed or not
    facelake_stage_seconds_total{stage}    seconds that actors spent in a stage; for `decode`, waited for its batches
    facelake_queue_depth{queue}            images not done yet: of the run, and of the blocks that each actor works on
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batch import Status

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

# Ray drops a gauge that was not set for two of its report intervals: 20 s by default, 2 s at least.
REPEAT_S = 1.0


class RunMeter:
    """The driver's metrics: what the sink committed, and how many images of the run are left.

    The counts stay after the `with` block; the queue of the run does not.
    """

    def __init__(self, images: int) -> None:
        self._left = _QueueDepth("run", images)
        self._images = _counter("images", "Images committed, by status.", "status")
        self._faces = _counter("faces", "Faces committed.")
        self._bytes = _counter("bytes", "Bytes of the image files committed.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def add(self, receipts: pa.Table) -> None:
        """Count receipts (`sink.RECEIPT`)."""
        totals = {name: pc.sum(receipts[name]).as_py() or 0 for name in receipts.column_names if name != "part"}
        self._left.images -= totals["images"]
        _increase(self._faces, totals["faces"])
        _increase(self._bytes, totals["bytes"])
        for status in Status:
            _increase(self._images, totals[status.value], status=status.value)


class PoolMeter:
    """An actor's metrics: the seconds of its stages, and how many images of its blocks are left."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._left = _QueueDepth("+".join(stages), 0)
        self._blocks = 0                     # in work
        self._lock = threading.Lock()        # guards it and the images left, which several threads change
        self._pool = "+".join(stages)
        self._passed = _counter("images_passed", "Images that have passed the stages of a pool.", "pool")
        self._seconds = _counter("stage_seconds", "Seconds that actors spent in a stage.", "stage")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds inside the `with` block for a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            _increase(self._seconds, time.perf_counter() - started, stage=name)

    @contextmanager
    def block(self, images: int) -> Iterator[None]:
        """The actor works on a block of so many images inside the `with` block."""
        with self._lock:
            self._blocks += 1
            self._left.images += images
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:         # an error leaves some images
                    self._left.images = 0

    def done(self, images: int) -> None:
        """So many images of a block are done."""
        with self._lock:
            self._left.images -= images
        _increase(self._passed, images, pool=self._pool)


class _QueueDepth:
    """A number of images, set again every second because Ray drops a gauge that is not set."""

    def __init__(self, queue: str, images: int) -> None:
        self.images = images
        self._queue = queue
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if _connected():
            from ray.util.metrics import Gauge

            gauge = Gauge("facelake_queue_depth", "Images that are not done yet.", ("queue",))
            self._thread = threading.Thread(target=self._repeat, args=(gauge,), name="facelake-metrics", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop setting it."""
        self._closed.set()
        if self._thread:
            self._thread.join()      # a call into a Ray that shuts down would crash the process

    def _repeat(self, gauge: Gauge) -> None:
        while True:
            gauge.set(self.images, tags={"queue": self._queue})
            if self._closed.wait(REPEAT_S):
                return


def _connected() -> bool:
    """Whether this process belongs to a Ray cluster. Does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _counter(name: str, description: str, *tags: str) -> Counter | None:
    """Ray's counter facelake_<name>_total; None without Ray."""
    if not _connected():
        return None
    from ray.util.metrics import Counter

    return Counter(f"facelake_{name}_total", description, tags)


def _increase(counter: Counter | None, by: float, **tags: str) -> None:
    if counter is not None and by > 0:      # Ray's counters refuse 0
        counter.inc(by, tags=tags)
