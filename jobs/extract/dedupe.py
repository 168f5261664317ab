"""--dedupe: an image with the content of another is not computed; its rows are copied from those of the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import pyarrow as pa

from jobs.command import say
from pipeline.batch import Fetched, TodoRow
from pipeline.input.fetch import Fetch
from pipeline.output import ledger
from pipeline.output.copies import write_copies
from pipeline.output.duplicates import CONTENTS, SOURCE_COLUMNS, Duplicates
from pipeline.run.progress import Progress
from pipeline.storage import Storage


@dataclass(slots=True)
class Dedupe:
    """Finds such images, and copies their rows. Called under the lease.

    check_lease: raises LeaseLost. rows_per_file: for so many images. found: images that have the content of others.
    copied: how many of them have their rows, in which parts.
    """

    storage: Storage
    run_id: str
    fingerprint: str
    check_lease: Callable[[], None]
    rows_per_file: Callable[[int], int]
    duplicates: Duplicates
    found: int = 0
    copied: int = 0
    parts: list[str] = field(default_factory=list)
    _waiting: int = 0
    _known: Sequence[str] = ()      # the parts that were asked for contents

    def find(self, fetch: Fetch) -> None:
        """Take the images that have the content of others out of the to-do.

        The rows of those whose content is in the ledger are copied at once.
        """
        self._known = ledger.committed_parts(self.storage)
        read = self._read(fetch, *self.duplicates.without_size())
        self.duplicates.add_ledger(ledger.scan_ledger(self.storage, SOURCE_COLUMNS, parts=self._known))
        read += self._read(fetch, *self.duplicates.candidates())
        self.found = self._waiting = self.duplicates.settle()
        say(
            f"--dedupe: {read:,} images that may be equal to others were read, and {self.found:,} are: their rows are "
            "copied, not computed"
        )
        self._copy()

    def copy_computed(self, parts: Sequence[str]) -> int:
        """Copy the rows that the run has computed. parts: all that are committed.

        Returns how many images still have no rows; they are the to-do now.
        """
        if self._waiting:
            new = sorted(set(parts) - set(self._known))
            self.duplicates.add_computed(ledger.scan_ledger(self.storage, SOURCE_COLUMNS, parts=new))
            self._copy()
        if self._waiting:
            self.duplicates.put_back()
        return self._waiting

    def _read(self, fetch: Fetch, images: int, tables: Iterator[pa.Table]) -> int:
        """Read these images for their content; returns how many. One that cannot be read is computed as always."""
        if not images:
            return 0
        progress = Progress("images read", lambda counts: f"{counts['bytes'] / 1e6:,.0f} MB", images)
        for table in tables:
            rows = [TodoRow(**row) for row in table.to_pylist()]
            self.duplicates.add_contents(pa.Table.from_pylist(list(contents(rows, fetch, progress)), schema=CONTENTS))
            self.check_lease()
        progress.close()
        return images

    def _copy(self) -> None:
        if self._waiting:
            tables = self.duplicates.copies(self.rows_per_file(self._waiting))
            for part, images in self._written(tables):
                self.parts.append(part)
                self.copied += images
            self._waiting = self.duplicates.forget_copied()

    def _written(self, tables: Iterable[pa.Table]) -> Iterator[tuple[str, int]]:
        return write_copies(self.storage, tables, self.run_id, self.fingerprint, self.check_lease)


def contents(rows: Sequence[TodoRow], fetch: Fetch, progress: Progress) -> Iterator[dict[str, object]]:
    """The content of each image that can be read whole (`CONTENTS`)."""
    with closing(fetch(rows)) as results:
        for row, found in zip(rows, results, strict=True):
            progress.add(1, {"bytes": len(found.content) if isinstance(found, Fetched) else 0})
            if isinstance(found, Fetched) and not found.file_bytes:      # else only the beginning of a large one
                yield {
                    "uri": row.uri, "sha256": hashlib.sha256(found.content).hexdigest(), "n_bytes": len(found.content),
                    "etag": found.etag, "mtime": found.mtime,
                }
