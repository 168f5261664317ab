"""One Ray actor of the graph: neighbouring stages, run one after the other on small batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import cv2
import pyarrow as pa

from pipeline.batch import ImageBatch
from pipeline.boundary import STAGES, faces_to_table, fold, images_to_table, table_to_faces, table_to_images, unfold
from pipeline.output.spool import ReadTodo
from pipeline.run.board import Board
from pipeline.run.runner import Batch, StageBuilders, StageRunner
from pipeline.run.telemetry import PoolMeter

MAX_FACES = 2048     # in a batch, 77 MB of crops; one image may have more


class Pool:
    """Neighbouring stages that share one actor; Arrow in, Arrow out.

    In: the place of a block of to-do rows (if `decode` is among the stages), or one folded batch of the pool before.
    Out: a table for each batch, with one row an image after the last stage of all, else folded into one row.
    The constructor loads the models. Decode prefetches one batch, so the device need not wait for the disk.
    """

    def __init__(
        self, stages: Sequence[str], builders: StageBuilders, read_todo: ReadTodo, threads: int, board: Board
    ) -> None:
        self._stages = stages
        self._read_todo = read_todo
        self._meter = PoolMeter(stages)
        self._runner = StageRunner(stages, builders, threads, board, self._meter)
        cv2.setNumThreads(threads)      # after the models, since importing ultralytics sets it to 0

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        batches: Iterable[Batch]
        if self._stages[0] == "decode":
            rows = self._read_todo(table)
            images, batches, stages = len(rows), self._runner.decode(rows), self._stages[1:]
        else:
            batch = self._from_table(unfold(table))
            images, batches, stages = len(batch.records), [batch], self._stages
        with self._meter.block(images):
            for batch in batches:
                for part in self._run(stages, batch):
                    yield self._to_table(part)
                    self._meter.done(len(part.records))

    def _run(self, stages: Sequence[str], batch: Batch) -> Iterator[Batch]:
        """The batch after these stages. Many faces are cut into parts, of which one ends before the next starts."""
        waiting = [(stages, batch)]
        while waiting:
            stages, part = waiting.pop()
            if stages:
                parts = self._runner.run(stages[0], part).parts(MAX_FACES)
                waiting += [(stages[1:], each) for each in reversed(parts)]
            else:
                yield part

    def _from_table(self, table: pa.Table) -> Batch:
        before = STAGES[STAGES.index(self._stages[0]) - 1]
        return table_to_images(table) if before == "decode" else table_to_faces(table, before)

    def _to_table(self, batch: Batch) -> pa.Table:
        after = self._stages[-1]
        table = images_to_table(batch) if isinstance(batch, ImageBatch) else faces_to_table(batch, after)
        return table if after == STAGES[-1] else fold(table)
