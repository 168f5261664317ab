"""Which images are to be copied: the listing of IMAGES joined with the images of OUTPUT and with what is copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from jobs.blur.table import COPIES, SETTLED
from pipeline import schemas
from pipeline.batch import GOOD, TodoRow
from pipeline.input.names import IMAGE_EXTENSIONS
from pipeline.output.todo import MEMORY_LIMIT, NEIGHBOURS, in_tables
from pipeline.schemas import LISTING
from pipeline.storage.scratch import ScratchFolder

RECORD_COLUMNS = ("uri", "status", "sha256", "width", "height", "n_faces", "faces_truncated")
READ_ROWS = 10_000

_RECORDS = pa.schema([*(schemas.IMAGES.field(name) for name in RECORD_COLUMNS), ("part", pa.string())])
_OF_RECORD = ("status", "sha256", "width", "height", "n_faces", "faces_truncated", "part")
_WORK = pa.schema([*LISTING, *(_RECORDS.field(name) for name in _OF_RECORD)])
_GOOD = ", ".join(f"'{status}'" for status in GOOD)
_SETTLED = ", ".join(f"'{outcome}'" for outcome in SETTLED)

_WANTED = f"""
    CREATE TABLE work AS
    SELECT listed.*, {", ".join(_OF_RECORD)} FROM listed JOIN known USING (uri)
    WHERE status IN ({_GOOD}) AND (uri, sha256) NOT IN (
        SELECT uri, sha256 FROM copies WHERE sha256 IS NOT NULL AND outcome IN ({_SETTLED}))
"""


@dataclass(frozen=True, slots=True)
class Image:
    """An image to copy. record: its row of images/, RECORD_COLUMNS. part: of OUTPUT, that has it."""

    row: TodoRow
    record: Mapping[str, Any]
    part: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Images of IMAGES. done: settled before. others: of another status, by status. unknown: not in OUTPUT.

    gone: in OUTPUT, but not in IMAGES any more.
    """

    to_do: int
    done: int
    others: Mapping[str, int]
    unknown: int
    gone: int


class Work:
    """A context manager. Call `add_listing`, `add_records` and `add_copies`, then `compute`; memory is bounded."""

    def __enter__(self) -> Self:
        self._folder = ScratchFolder()
        self._database = duckdb.connect(
            ":memory:", config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(self._folder.path)}
        )
        self._database.execute("SET enable_progress_bar = false")
        for name, schema in (("listed", LISTING), ("known", _RECORDS), ("copies", COPIES)):
            self._database.register("rows", schema.empty_table())
            self._database.execute(f"CREATE TABLE {name} AS SELECT * FROM rows")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()
        self._folder.close()

    def add_listing(self, rows: pa.Table) -> None:
        """Add images of IMAGES, a table of `schemas.LISTING`."""
        self._add("listed", rows)

    def add_records(self, rows: pa.Table) -> None:
        """Add images of OUTPUT: RECORD_COLUMNS and part."""
        self._add("known", rows)

    def add_copies(self, rows: pa.Table) -> None:
        """Add what became of images, a table of COPIES; of one image the last row counts."""
        self._add("copies", rows)

    def compute(self, root: str) -> Counts:
        """Find what is to do. root: what the uris of IMAGES begin with; "" if IMAGES is one file."""
        for name in ("listed", "known"):
            self._database.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT DISTINCT ON (uri) * FROM {name}")
        self._database.execute(_WANTED)
        to_do = self._number("FROM work")
        extensions = "|".join(sorted(IMAGE_EXTENSIONS))
        others = self._database.execute(
            f"""SELECT status, count(*) FROM listed JOIN known USING (uri) WHERE status NOT IN ({_GOOD})
                GROUP BY status ORDER BY status"""
        ).fetchall()
        good = self._number(f"FROM listed JOIN known USING (uri) WHERE status IN ({_GOOD})")
        unknown = self._number(
            f"FROM listed ANTI JOIN known USING (uri) WHERE regexp_matches(uri, '(?i)\\.({extensions})$')"
        )
        gone = self._number("FROM known ANTI JOIN listed USING (uri) WHERE starts_with(uri, ?)", root) if root else 0
        return Counts(to_do, good - to_do, dict(others), unknown, gone)

    def two_of_one_name(self) -> str | None:
        """An image beside an archive whose copy would have the name of a member's copy; None if there is none."""
        found = self._database.execute(
            """SELECT plain.uri FROM listed plain JOIN listed member ON plain.container IS NULL
               AND plain.uri = member.container || '/' || substr(member.uri, length(member.container) + 2) LIMIT 1"""
        ).fetchone()
        return str(found[0]) if found else None

    def row_of_parquet(self) -> str | None:
        """An image of OUTPUT that is a row of a Parquet file, which was listed as a file; None if there is none."""
        found = self._database.execute(
            r"""SELECT known.uri FROM known JOIN listed
                ON listed.uri = regexp_extract(known.uri, '(?i)^(.*?\.parquet)#', 1) LIMIT 1"""
        ).fetchone()
        return str(found[0]) if found else None

    def images(self) -> Iterator[Image]:
        """What is to do, part by part."""
        found = self._database.cursor().sql(f"SELECT * FROM work ORDER BY part, {NEIGHBOURS}")
        for table in in_tables(found, _WORK, READ_ROWS):
            for row in table.to_pylist():
                yield Image(TodoRow(*(row[name] for name in LISTING.names)), row, row["part"])

    def copies(self) -> pa.Table:
        """The last row of every image in COPIES, in the order of their names."""
        found = self._database.sql(
            """SELECT * EXCLUDE (place) FROM (
                   SELECT *, row_number() OVER (PARTITION BY uri ORDER BY rowid DESC) AS place FROM copies)
               WHERE place = 1 ORDER BY uri"""
        )
        return found.to_arrow_table().cast(COPIES)

    def _add(self, name: str, rows: pa.Table) -> None:
        self._database.register("rows", rows)
        self._database.execute(f"INSERT INTO {name} BY NAME SELECT * FROM rows")

    def _number(self, query: str, *values: str) -> int:
        [(number,)] = self._database.execute(f"SELECT count(*) {query}", values).fetchall()
        return int(number)


