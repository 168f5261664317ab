"""Runs the stages of one actor. It reports what they do, counts their seconds, and isolates bad images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from pipeline.batch import FaceBatch, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.run.board import Board
from pipeline.run.quarantine import decode_quarantined
from pipeline.run.status import FileReader, StatusReporter
from pipeline.run.telemetry import PoolMeter

StageBuilders = Mapping[str, Callable[[int], Any]]
"""For each stage, the function that builds it inside the actor from the number of threads it may use."""

Batch = ImageBatch | FaceBatch


class DecodeStage(FileReader, Protocol):
    """The first stage: rows in, batches of images out."""

    def __call__(self, rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
        """One record for every row, in the order of the rows."""


class StageRunner:
    """Builds and runs the stages of one actor; reports them to the watchdog and to Prometheus."""

    def __init__(
        self, stages: Sequence[str], builders: StageBuilders, threads: int, board: Board, meter: PoolMeter
    ) -> None:
        self._board, self._meter = board, meter
        self._reporter = StatusReporter("+".join(stages), board.report)
        self._reporter.start()
        self._stages = {name: self._build(name, builders[name], threads) for name in stages}

    def decode(self, rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
        """Batches with one record for every row, in order; images that killed their process are marked as failed."""
        return decode_quarantined(self._decode, self._board, rows)

    def run(self, name: str, batch: Batch) -> FaceBatch:
        """The batch after a stage. If the stage raises, its images run one by one, and those at fault are `failed`."""
        try:
            with self._running(name, [record.uri for record in batch.records]):
                faces: FaceBatch = self._stages[name](batch)
                return faces
        except Exception as error:
            if len(batch.records) == 1:
                return FaceBatch.without_faces((_failed(batch.records[0], name, error),))
            return FaceBatch.concatenate([self.run(name, single) for single in batch.singles()])

    def _build(self, name: str, builder: Callable[[int], Any], threads: int) -> Any:
        with self._reporter.doing(f"loading {name}"):
            stage = builder(threads)
        if name == "decode":
            self._reporter.follow(stage)
        return stage

    def _decode(self, rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
        stage: DecodeStage = self._stages["decode"]
        batches, done = iter(stage(rows)), 0
        while True:
            with self._running("decode", [row.uri for row in rows[done:]]):
                batch = next(batches, None)
            if batch is None:
                return
            done += len(batch)
            yield batch
            del batch        # frees its pixels before the next batch is waited for

    @contextmanager
    def _running(self, name: str, uris: Sequence[str]) -> Iterator[None]:
        with self._reporter.doing(name, uris), self._meter.stage(name):
            yield


def _failed(record: ImageRecord, stage: str, error: Exception) -> ImageRecord:
    reason = f"{stage}: {type(error).__name__}: {error}".splitlines()[0]
    return replace(
        record, status=Status.FAILED, error=reason, detect_pass=None, rotation_deg=None, n_faces=None,
        faces_truncated=None,
    )
