"""Leaves out an image that kills its process, so that it cannot stop the run.

A decoder that crashes, or a process that the system kills for its memory, raises no exception. Ray starts a new
process with the same block, and that process dies too, for ever. So the board counts how often each block was begun
and not finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.batch import NO_PIXELS, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.run.board import Board

DEATHS_OF_BLOCK = 2     # after so many, its images run one by one
DEATHS_OF_IMAGE = 2     # after so many alone in its process, it is left out; one of them may be a lost node


def decode_quarantined(
    decode: Callable[[Sequence[TodoRow]], Iterator[ImageBatch]], board: Board, rows: Sequence[TodoRow]
) -> Iterator[ImageBatch]:
    """The batches of `decode`. If the process has died at this block before, the images are decoded one by one.

    The pool asks for the next batch only when the last one is finished.
    """
    if not rows:
        return
    block = f"block {rows[0].uri}"
    if board.count(block) < DEATHS_OF_BLOCK:
        yield from decode(rows)
    else:
        for row in rows:
            image = f"image {row.uri}"
            if board.count(image) < DEATHS_OF_IMAGE:
                yield from decode([row])
                board.reset(image)
            else:
                yield ImageBatch((_left_out(row),), (NO_PIXELS,))
    board.reset(block)


def _left_out(row: TodoRow) -> ImageRecord:
    error = f"the process died {DEATHS_OF_IMAGE} times at this image alone: a crash in a library, or out of memory"
    return ImageRecord(row.uri, Status.FAILED, error, etag=row.etag, mtime=row.mtime, file_bytes=row.size)
