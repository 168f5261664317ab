"""Stub stages without models, and a board in memory, for tests of what runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.batch import NO_PIXELS, FaceBatch, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.geometry import IDENTITY, AlignmentTemplate
from pipeline.run.runner import StageBuilders
from pipeline.run.status import ProcessStatus
from pipeline.stages.align import Align
from pipeline.stages.embed import Embed


class FakeBoard:
    """The board of `pipeline.run.board` in one process. It keeps all statuses, not only the last."""

    process = "actor"

    def __init__(self, **begun: int | Sequence[str]) -> None:
        """begun: how often something was begun and not finished, on the node "here", or on which nodes."""
        self.statuses: list[ProcessStatus] = []
        self.node, self.lost_nodes = "here", set[str]()
        self.begun = {what: ["here"] * nodes if isinstance(nodes, int) else list(nodes)
                      for what, nodes in begun.items()}
        self.notes: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def report(self, status: bytes) -> None:
        with self._changed:
            self.statuses.append(ProcessStatus.from_json(status))
            self._changed.notify_all()

    def wait_for(self, doing: str) -> bool:
        """Wait until a process has reported that it does this; False if none does within 20 s."""
        with self._changed:
            return self._changed.wait_for(lambda: any(status.doing == doing for status in self.statuses), timeout=20)

    def begin(self, what: str) -> None:
        self.begun.setdefault(what, []).append(self.node)

    def unfinished(self, what: str) -> list[str]:
        return self.begun.get(what, [])

    def finish(self, what: str) -> None:
        self.begun.pop(what, None)
        self.notes.pop(what, None)

    def keep(self, what: str, content: bytes) -> None:
        self.notes[what] = content

    def kept(self, what: str) -> bytes:
        return self.notes.get(what, b"")

    def living_nodes(self) -> frozenset[str]:
        return frozenset({"here", *(node for nodes in self.begun.values() for node in nodes)} - self.lost_nodes)


class StubDecode:
    """A decode stage that makes its batches by a function."""

    def __init__(self, decode: Callable[[Sequence[TodoRow]], Iterator[ImageBatch]]) -> None:
        self._decode = decode
        self.files_read, self.reading = 0, None

    def __call__(self, rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
        for batch in self._decode(rows):
            self.files_read += len(batch)
            yield batch


def grey_image(name: str, *, broken: bool) -> tuple[ImageRecord, np.ndarray]:
    """An image of 8 px whose grey is its name, or a broken one."""
    if broken:
        return ImageRecord(name, Status.UNREADABLE, "cut", file_bytes=1000), NO_PIXELS
    return ImageRecord(name, width=8, height=8, file_bytes=1000), np.full((8, 8, 3), int(name), np.uint8)


def decode(rows: Sequence[TodoRow]) -> Iterator[ImageBatch]:
    """Rows named 0, 1, 2, …, three in a batch; every seventh is broken."""
    for start in range(0, len(rows), 3):
        images = (grey_image(row.uri, broken=int(row.uri) % 7 == 6) for row in rows[start : start + 3])
        yield ImageBatch(*zip(*images, strict=True))


def faces_on(batch: ImageBatch, counts: Sequence[int]) -> FaceBatch:
    """So many faces on each image; each fills the image."""
    chips = [pixels for pixels, count in zip(batch.pixels, counts, strict=True) for _ in range(count)]
    n = len(chips)
    boxes = np.tile(np.array([0, 0, 8, 8], np.float32), (n, 1))
    return FaceBatch(batch.records, np.array(counts, np.int64), boxes, np.ones(n, np.float32), tuple(chips),
                     np.tile(IDENTITY, (n, 1, 1)))


def detect(batch: ImageBatch) -> FaceBatch:
    """As many faces as the grey modulo 4."""
    return faces_on(batch, [int(pixels[0, 0, 0]) % 4 if len(pixels) else 0 for pixels in batch.pixels])


def keypoint(batch: FaceBatch) -> FaceBatch:
    """Level eyes."""
    points = np.concatenate([np.full((6, 2), [2, 3]), np.full((6, 2), [6, 3])]).astype(np.float32)
    return batch.with_eyes(np.tile(points, (len(batch), 1, 1)), np.full(len(batch), 0.01, np.float32))


def grey_vectors(crops: np.ndarray) -> np.ndarray:
    """Two values a crop."""
    return np.array([[1.0, crop.mean()] for crop in crops], np.float32).reshape(len(crops), 2)


STUBS: StageBuilders = {
    "decode": lambda threads, calls: StubDecode(decode),
    "detect": lambda threads, calls: detect,
    "keypoint": lambda threads, calls: keypoint,
    "align": lambda threads, calls: Align(AlignmentTemplate(), eyes_alone=False),
    "embed": lambda threads, calls: Embed(grey_vectors),
}
