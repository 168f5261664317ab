"""Runs the stages of one actor. It reports what they do, counts their seconds, and isolates bad images."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

from pipeline.batch import NO_PIXELS, FaceBatch, ImageBatch, ImageRecord, TodoRow
from pipeline.errors import EnvironmentFault, first_line, is_device_fault
from pipeline.run.board import Board
from pipeline.run.quarantine import Quarantine, left_out, quarantined
from pipeline.run.status import FileReader, StatusReporter
from pipeline.run.telemetry import PoolMeter
from pipeline.run.turns import Turns

logger = logging.getLogger(__name__)

StageBuilder = Callable[[int, int], Any]
"""Builds a stage inside the actor, from the number of threads it may use, and of threads that call it at once."""

StageBuilders = Mapping[str, StageBuilder]
"""The builder of each stage by its name."""

Batch = ImageBatch | FaceBatch

DEVICE_FAULTS = 12      # of an actor, one after the other; finding an image that causes them takes up to ten


@dataclass(frozen=True, slots=True)
class _Place:
    """An image of a batch, and its number there."""

    uri: str
    number: int


class DecodeStage(FileReader, Protocol):
    """The first stage: rows in, batches of images out."""

    def __call__(self, rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
        """One record for every row, in the order of the rows."""


def end_process() -> None:
    """End this process at once; Ray starts another one."""
    sys.stderr.flush()
    os._exit(1)


class StageRunner:
    """Builds and runs the stages of one actor; reports them to the watchdog and to Prometheus.

    end_process: called when the GPU has failed, because each further call in this process would fail too.
    """

    def __init__(
        self, stages: Sequence[str], builders: StageBuilders, threads: int, calls: int, board: Board, meter: PoolMeter,
        end_process: Callable[[], object] = end_process,
    ) -> None:
        self._board, self._meter, self._end_process = board, meter, end_process
        self._device_faults = f"device faults of {board.process}"
        self._had_fault, self._last_stage = bool(board.unfinished(self._device_faults)), stages[-1]
        self._leaving = threading.Lock()      # when a GPU fails, all threads see it; it counts once
        self._reporter = StatusReporter("+".join(stages), board.report)
        self._reporter.start()
        self._quarantine, self._turns = Quarantine(board, f"{'+'.join(stages)}: "), Turns()
        self._stages = {name: self._build(name, partial(builders[name], threads, calls)) for name in stages}

    def decode(self, rows: Sequence[TodoRow]) -> Iterator[Iterator[ImageBatch]]:
        """The batches of all rows by portions, as `quarantined` gives them. Two threads may each do a block."""
        def leave_out(row: TodoRow) -> ImageBatch:
            record = ImageRecord(row.uri, etag=row.etag, mtime=row.mtime, file_bytes=row.size)
            return ImageBatch((left_out(record),), (NO_PIXELS,))

        return quarantined(self._decode, leave_out, self._quarantine, self._turns, rows)

    def given(self, held: list[Batch]) -> Iterator[Iterator[list[Batch]]]:
        """The images of a batch of the pool before by portions, as `decode`: as a rule the batch as it is.

        held: has the batch, and is emptied if it goes on whole. Each batch is given in a list, to be taken out, so that
        its pixels are freed after their last use.
        """
        images = [_Place(record.uri, number) for number, record in enumerate(held[0].records)]

        def part(some: Sequence[_Place]) -> Iterator[list[Batch]]:
            whole = len(some) == len(images)
            yield [held.pop() if whole else held[0].part(some[0].number, some[-1].number + 1)]

        def leave_out(image: _Place) -> list[Batch]:
            records = (left_out(held[0].records[image.number]),)
            is_decoded = isinstance(held[0], ImageBatch)
            return [ImageBatch(records, (NO_PIXELS,)) if is_decoded else FaceBatch.without_faces(records)]

        yield from quarantined(part, leave_out, self._quarantine, self._turns, images)
        if held:                                # it was cut
            self._quarantine.forget(images)

    def run(self, name: str, batch: Batch) -> FaceBatch:
        """The batch after a stage. If the stage raises, the halves of the batch run one after the other, and so on.

        So a batch that is too large for a GPU's memory passes in parts, and an image at fault is found and `failed`.
        Raises EnvironmentFault where no image is at fault.
        """
        try:
            with self._running(name, [record.uri for record in batch.records]):
                faces: FaceBatch = self._stages[name](batch)
                return faces
        except EnvironmentFault:
            raise
        except Exception as error:
            if len(batch.records) == 1:
                reason = f"{name}: {type(error).__name__}: {first_line(error)}"
                return FaceBatch.without_faces((batch.records[0].failed(reason),))
        # The error is gone here, and with it the memory that the failed call held.
        return FaceBatch.concatenate([self.run(name, half) for half in batch.halves()])

    @contextmanager
    def block(self, images: int, rows: Sequence[TodoRow] = ()) -> Iterator[None]:
        """The actor works on a block of so many images inside the `with` block; its end is reported at once.

        rows: of a block that is decoded here. All of them must have been given on at the end.
        """
        self._reporter.begins_block()
        with self._meter.block(images):
            yield
        self._quarantine.forget(rows)
        self._reporter.send()

    def passed(self, batch: Batch) -> None:
        """Report that the images of a batch have passed all stages of the actor."""
        by_status = Counter(record.status.value for record in batch.records)
        faces = len(batch) if isinstance(batch, FaceBatch) else 0
        self._reporter.passed({"images": len(batch.records), "faces": faces, **by_status})
        self._meter.done(len(batch.records))

    def _build(self, name: str, build: Callable[[], Any]) -> Any:
        with self._reporter.doing(f"loading {name}"):
            stage = build()
        if name == "decode":
            self._reporter.follow(stage)
        return stage

    def _decode(self, rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
        stage: DecodeStage = self._stages["decode"]
        batches, done = iter(stage(rows)), 0
        while True:
            with self._running("decode", [row.uri for row in rows[done:]]):
                held = list(islice(batches, 1))
            if not held:
                return
            done += len(held[0])
            yield held.pop()      # no name of it here: the caller frees its pixels after their last use

    @contextmanager
    def _running(self, name: str, uris: Sequence[str]) -> Iterator[None]:
        try:
            with self._reporter.doing(name, uris), self._meter.stage(name):
                yield
        except Exception as error:
            if is_device_fault(error):
                self._leave_device(name, error)
            if fault := EnvironmentFault.of(error):
                raise fault from error
            raise
        if self._had_fault and name == self._last_stage:
            self._board.finish(self._device_faults)
            self._had_fault = False

    def _leave_device(self, name: str, error: Exception) -> None:
        """End this process, so that Ray starts another one; raises EnvironmentFault if that did not help before."""
        reason = f"{name}: the GPU failed on {socket.gethostname()}: {type(error).__name__}: {first_line(error)}"
        with self._leaving:
            self._board.begin(self._device_faults)
            if len(self._board.unfinished(self._device_faults)) >= DEVICE_FAULTS:
                raise EnvironmentFault(
                    f"{reason}. So it did {DEVICE_FAULTS} times in a row, in new processes; look at nvidia-smi and "
                    "dmesg there"
                ) from error
            logger.warning("%s. The process ends, Ray starts another one", reason)
            self._end_process()
