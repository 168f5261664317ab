"""What runs inside one Ray actor: neighbouring stages, one after the other, on sub-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import pyarrow as pa

from pipeline.batch import FaceBatch, ImageBatch, ImageRecord, Status
from pipeline.boundary import STAGES, faces_to_table, fold, images_to_table, table_to_faces, table_to_images, unfold
from pipeline.output.spool import ReadTodo
from pipeline.run.telemetry import PoolMeter

StageBuilders = Mapping[str, Callable[[int], Any]]
"""From a stage's name to what builds it inside the actor, given the number of threads it may use."""

Batch = ImageBatch | FaceBatch

MAX_FACES = 2048     # that go through a stage together, 77 MB of crops; one image may have more


class Pool:
    """Neighbouring stages that share one actor; Arrow in, Arrow out.

    Called with where a block of to-do rows lies (when `decode` is among the stages) or with a batch as the pool before
    left it, folded into one row, it yields a table for every sub-batch: one row an image after the last stage, folded
    before that. Models are loaded in the constructor. Decode works one sub-batch ahead by itself, so that the device
    need not wait for the disk.
    """

    def __init__(self, stages: Sequence[str], builders: StageBuilders, read_todo: ReadTodo, threads: int) -> None:
        self._before = STAGES[STAGES.index(stages[0]) - 1] if stages[0] != "decode" else None
        self._after = stages[-1]
        self._read_todo = read_todo
        built = {name: builders[name](threads) for name in stages}
        cv2.setNumThreads(threads)      # after the models: importing ultralytics sets it to 0
        self._decode = built.pop("decode", None)
        self._stages = list(built.items())
        self._meter = PoolMeter(stages)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        if self._decode:
            rows = self._read_todo(table)
            images, batches = len(rows), self._meter.waited("decode", self._decode(rows))
        else:
            batch = self._batch(unfold(table))
            images, batches = len(batch.records), [batch]
        with self._meter.block(images):
            for batch in batches:
                for part in self._through_stages(batch):
                    yield self._table(part)
                    self._meter.done(len(part.records))

    def _through_stages(self, batch: Batch) -> Iterator[Batch]:
        """Through all stages; photos of crowds in parts, one after the other, so that few crops are alive at once."""
        waiting = [(0, batch)]
        while waiting:
            step, part = waiting.pop()
            if step == len(self._stages):
                yield part
            else:
                name, stage = self._stages[step]
                with self._meter.stage(name):
                    done = run_isolated(name, stage, part).parts(MAX_FACES)
                waiting += [(step + 1, each) for each in reversed(done)]

    def _batch(self, table: pa.Table) -> Batch:
        return table_to_images(table) if self._before == "decode" else table_to_faces(table, self._before)

    def _table(self, batch: Batch) -> pa.Table:
        table = images_to_table(batch) if self._after == "decode" else faces_to_table(batch, self._after)
        return table if self._after == STAGES[-1] else fold(table)


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
