"""One Ray actor of the graph: neighbouring stages, run one after the other on small batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import repeat

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
    Out: after the last stage of all, the rows of `step_images` images, else of every batch, folded into one row. When
    Ray repeats a block, because a process died or an output was lost, it drops as many of the first outputs as it has
    seen before. So outputs are cut where those of the attempt before were.
    The constructor loads the models. Decode prefetches one batch, so the stages need not wait for the disk. Two threads
    of Ray may each give a block: the second is fetched and decoded as soon as the first is decoded.

    calls: how many batches pass through the stages at once, each in a thread. pixel_bytes: of the batches in work
    together, at most, or of one batch.
    """

    def __init__(
        self, stages: Sequence[str], builders: StageBuilders, read_todo: ReadTodo, threads: int, calls: int,
        pixel_bytes: int, step_images: int, board: Board,
    ) -> None:
        self._stages, self._board = stages, board
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
            uris, tables = [row.uri for row in rows], self._decoded(rows)
        else:
            held = [self._from_table(unfold(table))]
            uris, tables = [record.uri for record in held[0].records], self._given(held)
        with self._runner.block(len(uris), rows):
            if self._stages[-1] == STAGES[-1]:
                tables = in_steps(tables, repeat(self._step_images))
            elif uris:
                block = f"{len(uris)} images from {uris[0]}"
                tables = self._as_before(f"{'+'.join(self._stages)}: outputs of {block}", tables)
            yield from map(fold, tables)

    def _decoded(self, rows: Sequence[TodoRow]) -> Iterator[pa.Table]:
        run = partial(self._run, self._stages[1:])
        for batches in self._runner.decode(rows):
            for tables in in_order(self._threads, run, batches, ahead=self._calls, room=self._room):
                yield from tables

    def _given(self, held: list[Batch]) -> Iterator[pa.Table]:
        for parts in self._runner.given(held):
            for part in parts:
                yield from self._run(self._stages, part)

    def _as_before(self, what: str, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The same rows, cut as in the attempts before, as far as they came. What is fetched decides the batches."""
        known = [int(size) for size in self._board.kept(what).split()]
        for number, table in enumerate(in_steps(tables, tuple(known))):
            if number == len(known):
                known.append(len(table))
                self._board.keep(what, " ".join(map(str, known)).encode())
            yield table
        if self._stages[0] != "decode":         # its batches are many, and the faces alone decide how each is cut
            self._board.finish(what)

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


def in_steps(tables: Iterable[pa.Table], sizes: Iterable[int]) -> Iterator[pa.Table]:
    """The same rows in tables of these sizes, the last one with fewer. After the last size tables are as they came."""
    remaining = iter(sizes)
    size = next(remaining, None)
    waiting, n_waiting = list[pa.Table](), 0
    for table in tables:
        waiting.append(table)
        n_waiting += len(table)
        while size is not None and n_waiting >= size:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, size)
            waiting, n_waiting = [joined.slice(size)], n_waiting - size
            size = next(remaining, None)
        if size is None and n_waiting:
            yield pa.concat_tables(waiting)
            waiting, n_waiting = [], 0
    if n_waiting:
        yield pa.concat_tables(waiting)
