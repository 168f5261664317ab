"""Leaves out an image that kills its process, so that it cannot stop the run.

A decoder that crashes, or a process that the system kills for its memory, raises no exception. Ray starts a new
process with the same block, and that process dies too, for ever. So the board keeps which rows were begun and not
finished. A block at which processes died is cut into pieces, the piece at which one dies into smaller ones, down to
the image: of 100,000 images it takes six steps.

An actor decodes the next block while the last one is in its stages, so a death counts for both. But pieces and single
images are done alone: an innocent block may be cut, and none of its images is left out.

The node may be what died, a spot instance for example: then no image is at fault. So only deaths on nodes that are
alive count, as of the moment when they are counted. An image that takes its node with it is found more slowly.

A batch that one pool gives to the next is treated as a block is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.batch import ImageRecord
from pipeline.run.turns import Turns

DEATHS_OF_BLOCK = 2     # after so many, it is cut into pieces
DEATHS_OF_PIECE = 1     # a piece is suspect already
DEATHS_OF_IMAGE = 2     # after so many alone in its process, it is left out
LOST_NODES = 4          # so many attempts that ended with their node count as one death
PIECES = 8              # a step of halves would be three deaths, and a death costs the start of a process


class Notes(Protocol):
    """What was begun and not finished, on which nodes, and which nodes are alive: the board."""

    def begin(self, what: str) -> None:
        """Note that this process begins something."""

    def unfinished(self, what: str) -> Sequence[str]:
        """The nodes on which this was begun and not finished, one for each time."""

    def finish(self, what: str) -> None:
        """Forget how often this was begun."""

    def living_nodes(self) -> frozenset[str]:
        """The nodes that are alive."""


class Named(Protocol):
    """A row of a block: a to-do row, or an image of a batch."""

    @property
    def uri(self) -> str:
        """The name of the image."""


Row = TypeVar("Row", bound=Named)
Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class Portion(Generic[Row]):
    """Neighbouring rows of a block, at least one, to be done in one go.

    alone: nothing else may run in this process meanwhile, because a process died at them, or because it is one image,
    which is left out for its own deaths. left_out: one image that has killed its process; it must not be touched again.
    """

    rows: Sequence[Row]
    alone: bool = False
    left_out: bool = False


class Quarantine:
    """Cuts blocks at which processes died. One object serves all blocks of a process.

    pool: its name; the same images pass through several.
    """

    def __init__(self, notes: Notes, pool: str = "") -> None:
        self._notes, self._pool = notes, pool

    def portions(self, rows: Sequence[Row]) -> Iterator[Portion[Row]]:
        """All rows of a block, in order. Ask for the next portion only when `doing` the last one has ended."""
        if rows:
            yield from self._cut(Portion(rows, alone=len(rows) == 1), DEATHS_OF_BLOCK)

    def forget(self, rows: Sequence[Named]) -> None:
        """Forget how a block was cut. Call it when all rows are given on: Ray repeats the block if the process dies
        before. An image keeps its deaths.
        """
        if len(rows) > 1 and self._notes.unfinished(self._cut_name(rows)):
            for piece in _pieces(rows):
                self.forget(piece)
            self._notes.finish(self._name(rows))
            self._notes.finish(self._cut_name(rows))

    @contextmanager
    def doing(self, portion: Portion[Row]) -> Iterator[None]:
        """Inside the `with` block the rows of a portion are done; they are finished when it ends without an error."""
        self._notes.begin(self._name(portion.rows))
        yield
        self._notes.finish(self._name(portion.rows))

    def _cut(self, portion: Portion[Row], deaths_allowed: int) -> Iterator[Portion[Row]]:
        """The portion, or its pieces."""
        if not self._is_cut(portion, deaths_allowed):
            yield portion
        elif len(portion.rows) == 1:
            yield Portion(portion.rows, alone=True, left_out=True)
        else:
            for piece in _pieces(portion.rows):
                allowed = DEATHS_OF_IMAGE if len(piece) == 1 else DEATHS_OF_PIECE
                yield from self._cut(Portion(piece, alone=True), allowed)

    def _is_cut(self, portion: Portion[Row], deaths_allowed: int) -> bool:
        """Once cut, always cut, even if a node that seemed alive turns out to be lost."""
        nodes = self._notes.unfinished(self._name(portion.rows))
        if nodes and self._notes.unfinished(self._cut_name(portion.rows)):
            return True
        if not nodes or self._deaths(nodes) < deaths_allowed:
            return False
        self._notes.begin(self._cut_name(portion.rows))
        return True

    def _name(self, rows: Sequence[Named]) -> str:
        """The same for the same rows in every attempt."""
        return f"{self._pool}{len(rows)} images from {rows[0].uri}"

    def _cut_name(self, rows: Sequence[Named]) -> str:
        """The note that these rows are cut."""
        return f"cut {self._name(rows)}"

    def _deaths(self, nodes: Sequence[str]) -> int:
        living = self._notes.living_nodes()
        on_living = sum(node in living for node in nodes)
        return on_living + (len(nodes) - on_living) // LOST_NODES


def _pieces(rows: Sequence[Row]) -> list[Sequence[Row]]:
    size = -(-len(rows) // PIECES)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def quarantined(
    work: Callable[[Sequence[Row]], Iterator[Batch]], leave_out: Callable[[Row], Batch], quarantine: Quarantine,
    turns: Turns, rows: Sequence[Row],
) -> Iterator[Iterator[Batch]]:
    """The batches of `work` by portions, all rows in order. An image that killed its process is left out.

    leave_out: makes the batch in its place. All stages must be done with a portion before the next one is asked for,
    and `Quarantine.forget` be called at the end. Another thread may begin its rows meanwhile, as `turns` allow.
    """
    for portion in quarantine.portions(rows):
        if portion.left_out:
            yield iter([leave_out(portion.rows[0])])
            continue
        with turns.work(alone=portion.alone) as ended, quarantine.doing(portion):
            yield _then(work(portion.rows), ended)


def _then(batches: Iterator[Batch], ended: Callable[[], None]) -> Iterator[Batch]:
    """The batches; at their end a call."""
    yield from batches
    ended()


def left_out(record: ImageRecord) -> ImageRecord:
    """The record of an image that has killed its process."""
    error = f"the process died {DEATHS_OF_IMAGE} times at this image alone: a crash in a library, or out of memory"
    return record.failed(error)
