"""One Ray actor of the graph: neighbouring stages, run one after the other on small batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import cv2
import pyarrow as pa

from pipeline.batch import ImageBatch, TodoRow
from pipeline.boundary import STAGES, faces_to_table, fold, images_to_table, table_to_faces, table_to_images, unfold
from pipeline.output.spool import ReadTodo
from pipeline.run.board import Board
from pipeline.run.runner import Batch, StageBuilders, StageRunner
from pipeline.run.telemetry import PoolMeter
from pipeline.stages.decode import MemoryGate

MAX_FACES = 2048        # in a batch, 77 MB of crops; one image may have more


class Pool:
    """Neighbouring stages that share one actor; Arrow in, Arrow out.

    In: the place of a block of to-do rows (if `decode` is among the stages), or one folded batch of the pool before.
    Out: after the last stage of all, the rows of `step_images` images, else of every batch, folded into one row.
    The constructor loads the models. Decode prefetches one batch, so the stages need not wait for the disk. Two threads
    of Ray may each give a block: the second is fetched and decoded as soon as the first is decoded.

    calls: how many batches pass through the stages at once, each in a thread. pixel_bytes: of the batches in work
    together, at most, or of one batch.
    """

    def __init__(
        self, stages: Sequence[str], builders: StageBuilders, read_todo: ReadTodo, threads: int, calls: int,
        pixel_bytes: int, step_images: int, board: Board,
    ) -> None:
        self._stages = stages
        self._step_images = step_images
        self._read_todo = read_todo
        self._calls = calls
        self._threads, self._room = ThreadPoolExecutor(calls, "stages"), MemoryGate(pixel_bytes)
        self._runner = StageRunner(stages, builders, threads, calls, board, PoolMeter(stages))
        cv2.setNumThreads(max(1, threads // calls))      # after the models: importing ultralytics sets it to 0

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        rows: Sequence[TodoRow] = ()
        if self._stages[0] == "decode":
            rows = self._read_todo(table)
            images, tables = len(rows), self._decoded(rows)
        else:
            held = [self._from_table(unfold(table))]
            images, tables = len(held[0].records), self._folded(held)
        with self._runner.block(images, rows):
            is_last = self._stages[-1] == STAGES[-1]
            yield from map(fold, in_steps(tables, self._step_images) if is_last else tables)

    def _decoded(self, rows: Sequence[TodoRow]) -> Iterator[pa.Table]:
        run = partial(self._run, self._stages[1:])
        for batches in self._runner.decode(rows):
            for tables in in_order(self._threads, run, batches, ahead=self._calls, room=self._room):
                yield from tables

    def _folded(self, held: list[Batch]) -> Iterator[pa.Table]:
        yield from self._run(self._stages, held)

    def _run(self, stages: Sequence[str], held: list[Batch]) -> list[pa.Table]:
        """The tables of a batch after these stages. Many faces are cut into parts, one done before the next starts.

        held: has the batch, and is emptied, so that its pixels are freed after their last use.
        """
        waiting = [(stages, held.pop())]
        done = []
        while waiting:
            stages, part = waiting.pop()
            if stages:
                parts = self._runner.run(stages[0], part).parts(MAX_FACES)
                waiting += [(stages[1:], each) for each in reversed(parts)]
            else:
                done.append(self._to_table(part))
                self._runner.passed(part)
        return done

    def _from_table(self, table: pa.Table) -> Batch:
        before = STAGES[STAGES.index(self._stages[0]) - 1]
        return table_to_images(table) if before == "decode" else table_to_faces(table, before)

    def _to_table(self, batch: Batch) -> pa.Table:
        return images_to_table(batch) if isinstance(batch, ImageBatch) else faces_to_table(batch, self._stages[-1])


def in_order(
    threads: ThreadPoolExecutor, run: Callable[[list[Batch]], list[pa.Table]], batches: Iterable[ImageBatch],
    *, ahead: int, room: MemoryGate,
) -> Iterator[list[pa.Table]]:
    """What `run` makes of each batch, in the order of the batches, which run in threads.

    Beside the one whose result is waited for, at most `ahead` batches are in work. They share the room for pixels,
    with those of another block too. Each is given in a list, to be taken out.
    """
    working: deque[tuple[Future[list[pa.Table]], int]] = deque()
    try:
        for batch in batches:
            n_bytes = sum(pixels.nbytes for pixels in batch.pixels)
            while working and (len(working) > ahead or n_bytes + sum(each for _, each in working) > room.limit_bytes):
                yield working.popleft()[0].result()
            room.take(n_bytes)
            held: list[Batch] = [batch]
            del batch
            future = threads.submit(run, held)
            future.add_done_callback(partial(_leave, room, n_bytes))
            working.append((future, n_bytes))
        while working:
            yield working.popleft()[0].result()
    finally:
        wait([future for future, _ in working if not future.cancel()])


def _leave(room: MemoryGate, n_bytes: int, _: Future[list[pa.Table]]) -> None:
    room.give_back(n_bytes)


def in_steps(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of so many rows, the last one with fewer.

    They do not depend on how the rows came: when Ray repeats a block whose actor died, it drops as many of the first
    outputs as it has seen before.
    """
    waiting, n_waiting = list[pa.Table](), 0
    for table in tables:
        waiting.append(table)
        n_waiting += len(table)
        if n_waiting >= rows:
            joined = pa.concat_tables(waiting)
            whole = n_waiting - n_waiting % rows
            yield from (joined.slice(start, rows) for start in range(0, whole, rows))
            waiting, n_waiting = [joined.slice(whole)], n_waiting - whole
    if n_waiting:
        yield pa.concat_tables(waiting)
