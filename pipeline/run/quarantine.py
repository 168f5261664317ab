"""Keeps an image that kills its process from killing the run.

A decoder that crashes, or a process that the system ends for its memory, leaves no exception behind: Ray starts the
process again, hands it the same block, and it dies again, for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from pipeline.batch import NO_PIXELS, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.run.pool import StageBuilders

DecodeRows = Callable[[Sequence[TodoRow]], Iterator[ImageBatch]]

DEATHS_OF_BLOCK = 2     # then its images go through the pool one by one
DEATHS_OF_IMAGE = 2     # alone in its process; then it is left out. A lost node can be one of them


class Counts(Protocol):
    """Numbers that outlive the process; `board.Board` and a test's dictionary."""

    def count(self, what: str) -> int:
        """Count one more of this; returns how many there were before."""

    def forget(self, what: str) -> None:
        """Count this from 0 again."""


def guard_decode(builders: StageBuilders, counts: Counts) -> StageBuilders:
    """The same builders; their decode leaves images out at which the process has died again and again."""
    return {**builders, "decode": partial(_build, builders["decode"], counts)}


def _build(builder: Callable[[int], DecodeRows], counts: Counts, threads: int) -> DecodeRows:
    return partial(decode_guarded, builder(threads), counts)


def decode_guarded(decode: DecodeRows, counts: Counts, rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
    """The batches of `decode`; of a block at which its process has died before, image by image.

    What is asked for next is the sign that the pool has done with the batch before.
    """
    if not rows:
        return
    block = f"block {rows[0].uri}"
    if counts.count(block) < DEATHS_OF_BLOCK:
        yield from decode(rows)
    else:
        for row in rows:
            image = f"image {row.uri}"
            if counts.count(image) < DEATHS_OF_IMAGE:
                yield from decode([row])
                counts.forget(image)
            else:
                yield ImageBatch((_left_out(row),), (NO_PIXELS,))
    counts.forget(block)


def _left_out(row: TodoRow) -> ImageRecord:
    error = f"the process died {DEATHS_OF_IMAGE} times at this image alone: a crash in a library, or out of memory"
    return ImageRecord(row.uri, Status.FAILED, error, etag=row.etag, mtime=row.mtime, file_bytes=row.size)
