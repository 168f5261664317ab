"""Figures for Prometheus, by Ray's own exporter; where no Ray runs, nothing happens.

Every node of a cluster shows them at /metrics of its metrics port, their names with `ray_` before:

    facelake_images_total{status}          images that are committed
    facelake_faces_total                   faces that are committed
    facelake_bytes_total                   bytes of the image files behind them
    facelake_stage_seconds_total{stage}    seconds that actors spent in a stage; in `decode`, waited for it
    facelake_queue_depth{queue}            images not done yet: of the run, and of the block each actor works on
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batch import Status

# Ray shows a gauge no longer when it has not been set for two of its report intervals: 20 s by default, 2 s at least.
REPEAT_S = 1.0

T = TypeVar("T")


class RunMeter:
    """What the driver counts: receipts of the sink, each once, and what is left of the run's images.

    A context manager; after it the figures stay as they are, but for the queue, which is forgotten.
    """

    def __init__(self, images: int) -> None:
        self._left = _Level("run", images)
        self._images = _counter("images", "Images committed, by status.", "status")
        self._faces = _counter("faces", "Faces committed.")
        self._bytes = _counter("bytes", "Bytes of the image files that are committed.")

    def __enter__(self) -> RunMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def add(self, receipts: pa.Table) -> None:
        """Count receipts (`sink.RECEIPT`)."""
        totals = {name: pc.sum(receipts[name]).as_py() or 0 for name in receipts.column_names if name != "part"}
        self._left.change(-totals["images"])
        _increase(self._faces, totals["faces"])
        _increase(self._bytes, totals["bytes"])
        for status in Status:
            _increase(self._images, totals[status.value], status=status.value)


class PoolMeter:
    """What an actor counts: the seconds of its stages, and what is left of the block it works on."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._left = _Level("+".join(stages), 0)
        self._seconds = _counter("stage_seconds", "Seconds that actors spent in a stage; waited for, decode.", "stage")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds inside for a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            _increase(self._seconds, time.perf_counter() - started, stage=name)

    def waited(self, name: str, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the seconds until each is there are counted for a stage."""
        remaining = iter(batches)
        while True:
            with self.stage(name):
                batch = next(remaining, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def block(self, images: int) -> Iterator[None]:
        """A block of so many images is worked on inside."""
        self._left.change(images)
        try:
            yield
        finally:
            self._left.clear()

    def done(self, images: int) -> None:
        """So many images of the block are through the last stage."""
        self._left.change(-images)


class _Level:
    """A number of images that are waiting. Said again every second, since Ray forgets what was not said lately."""

    def __init__(self, queue: str, images: int) -> None:
        self.images = images
        self._queue, self._gauge, self._closed, self._thread = queue, None, threading.Event(), None
        if _connected():
            from ray.util.metrics import Gauge

            self._gauge = Gauge("facelake_queue_depth", "Images that are not done yet.", ("queue",))
            self._thread = threading.Thread(target=self._repeat, name="facelake-metrics", daemon=True)
            self._thread.start()

    def change(self, by: int) -> None:
        self.images += by

    def clear(self) -> None:
        self.images = 0

    def close(self) -> None:
        self._closed.set()
        if self._thread:
            self._thread.join()      # a call into a Ray that is shut down meanwhile crashes the process

    def _repeat(self) -> None:
        while True:
            self._gauge.set(self.images, tags={"queue": self._queue})
            if self._closed.wait(REPEAT_S):
                return


def _connected() -> bool:
    """Whether this process belongs to a Ray; without importing it where nothing has."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _counter(name: str, description: str, *tags: str) -> Any:
    """Ray's counter facelake_<name>_total; None where no Ray runs."""
    if not _connected():
        return None
    from ray.util.metrics import Counter

    return Counter(f"facelake_{name}_total", description, tags)


def _increase(counter: Any, by: float, **tags: str) -> None:
    if counter is not None and by > 0:      # Ray's counters refuse 0
        counter.inc(by, tags=tags)
