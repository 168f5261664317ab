"""What runs inside one Ray actor: neighbouring stages, one after the other, on sub-batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.batch import FaceBatch, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.boundary import STAGES, faces_to_table, images_to_table, table_to_faces, table_to_images

StageBuilders = Mapping[str, Callable[[int], Any]]
"""From a stage's name to what builds it inside the actor, given the number of threads it may use."""

Batch = ImageBatch | FaceBatch
T = TypeVar("T")


class Pool:
    """Neighbouring stages that share one actor; Arrow in, Arrow out, one row an image.

    Called with a block of to-do rows (when `decode` is among the stages) or of what the stage before left, it yields
    a table for every sub-batch. Models are loaded in the constructor. With `decode` and others in one pool, a thread
    fetches and decodes the next sub-batch while this one is worked on.
    """

    def __init__(self, stages: Sequence[str], builders: StageBuilders, threads: int, batch_images: int) -> None:
        self._before = STAGES[STAGES.index(stages[0]) - 1] if stages[0] != "decode" else None
        self._after = stages[-1]
        self._batch_images = batch_images
        built = {name: builders[name](threads) for name in stages}
        self._decode = built.pop("decode", None)
        self._stages = built

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        if self._decode is None:
            batches = self._sub_batches(table)
        else:
            batches = self._decode([TodoRow(**row) for row in table.to_pylist()])
            if self._stages:
                batches = ahead(batches)
        for batch in batches:
            for name, stage in self._stages.items():
                batch = run_isolated(name, stage, batch)
            yield images_to_table(batch) if self._after == "decode" else faces_to_table(batch, self._after)

    def _sub_batches(self, table: pa.Table) -> Iterator[Batch]:
        for start in range(0, len(table), self._batch_images):
            part = table.slice(start, self._batch_images)
            yield table_to_images(part) if self._before == "decode" else table_to_faces(part, self._before)


def run_isolated(name: str, stage: Callable[[Batch], FaceBatch], batch: Batch) -> FaceBatch:
    """Run a stage; where it raises, image by image, so that only those at fault become `failed` rows."""
    try:
        return stage(batch)
    except Exception as error:
        if len(batch.records) == 1:
            return FaceBatch.without_faces((_failed(batch.records[0], name, error),))
        return FaceBatch.concatenate([run_isolated(name, stage, single) for single in batch.singles()])


def _failed(record: ImageRecord, stage: str, error: Exception) -> ImageRecord:
    reason = f"{stage}: {type(error).__name__}: {error}".splitlines()[0]
    return replace(
        record, status=Status.FAILED, error=reason, detect_pass=None, rotation_deg=None, n_faces=None,
        faces_truncated=None,
    )


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made by a thread while the one before is in use. Closing it closes `items`."""
    handed: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
    wanted = threading.Event()
    wanted.set()

    def put(message: tuple[bool, Any]) -> None:
        while wanted.is_set():
            try:
                handed.put(message, timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        end: Any = None
        try:
            for item in items:
                put((False, item))
                if not wanted.is_set():
                    break
        except BaseException as error:
            end = error
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            put((True, end))

    maker = threading.Thread(target=make, name="fetch-ahead", daemon=True)
    maker.start()
    try:
        while True:
            last, value = handed.get()
            if not last:
                yield value
            elif value is not None:
                raise value
            else:
                return
    finally:
        wanted.clear()
        maker.join()
