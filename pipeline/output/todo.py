"""What is left to do: the listing minus the ledger, in bounded memory.

The listing is kept in a file. DuckDB joins it with the ledger by the 128-bit MD5 of the uri, and spills to disk above
its memory limit. (That two of ten million uris have the same MD5 has a probability of 10⁻²⁵.) A listing of 10 million
uris, 9 million of them done, takes 1 GB (`jobs.bench plan`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import duckdb
import pyarrow as pa

from pipeline.batch import RETRIED, Status
from pipeline.output.erased import Erased
from pipeline.schemas import LISTING
from pipeline.storage.scratch import ScratchFolder

MEMORY_LIMIT = "700MB"
ERROR_KINDS = 12              # that an outcome names; it only counts the others
_SPOOL_ROWS = 100_000         # rows per batch of the listing's file
LISTING_COLUMNS = ", ".join(f'"{name}"' for name in LISTING.names)
NEIGHBOURS = 'coalesce(container, uri), "offset", uri'      # in this order neighbours share a folder, a prefix or a tar

# If a uri has several rows, the first state in this list wins. Two rows in the ledger (after a crash): the uri is done
# if one of them is. Two rows in the listing: it has changed only if it has in both.
_DONE, _CHANGED, _RETRIED, _NEW, _ERASED, _COPIED = range(6)

_EMPTY = hashlib.sha256(b"").hexdigest()

# Etags decide; if one is missing, size and mtime do. A value that is missing on one side is not a change.
_HAS_CHANGED = """
    CASE WHEN wanted.etag IS NOT NULL AND known.etag IS NOT NULL THEN hash(wanted.etag) <> known.etag
         ELSE coalesce(wanted.size <> known.file_bytes, false) OR coalesce(wanted.mtime <> known.mtime, false) END
"""

# Of a done image only the key is kept. A uri that is twice in the listing or in the ledger gives several rows.
_JOIN = f"""
    CREATE TABLE todo AS
    SELECT key, state, {', '.join(f'CASE WHEN state <> {_DONE} THEN "{n}" END AS "{n}"' for n in LISTING.names)}
    FROM (SELECT wanted.*, CASE WHEN known.key IS NULL THEN {_NEW} WHEN known.retry THEN {_RETRIED}
                                WHEN {_HAS_CHANGED} THEN {_CHANGED} ELSE {_DONE} END AS state
          FROM (SELECT *, md5_number(uri) AS key FROM listing) wanted LEFT JOIN known ON wanted.key = known.key)
"""

# Of several rows of one uri the least one stays, whole: which one does not depend on their order. Rarely needed, and as
# slow as the join.
_MERGE = f"""
    CREATE TABLE merged AS SELECT key, unnest(min(row_of)) FROM (
        SELECT key, {{'state': state, {', '.join(f"'{n}': {chr(34)}{n}{chr(34)}" for n in LISTING.names)}}} AS row_of
        FROM todo
    ) GROUP BY key;
    DROP TABLE todo;
    ALTER TABLE merged RENAME TO todo
"""

# Hashes only uris that are not done. Not run if the list is empty.
_LEAVE_OUT_ERASED = f"""
    UPDATE todo SET state = {_ERASED}
    WHERE state <> {_DONE} AND (sha256(concat($salt, uri)) IN (SELECT hash FROM erased)
                                OR sha256(concat($salt, nfc_normalize(uri))) IN (SELECT hash FROM erased))
"""


@dataclass(frozen=True, slots=True)
class TodoCounts:
    """How many images are to do, and why; `listed` = `done` + `erased` + `images`."""

    images: int               # to do
    listed: int               # distinct uris
    duplicates: int           # further rows of the same uris
    done: int                 # in the ledger, and not to do again
    changed: int              # whose object differs from the ledger; part of `done`, or of `images` with redo_changed
    retried: int              # in the ledger as fetch_failed or failed; part of `images`
    erased: int = 0           # left out because `jobs.erase` erased them
    vanished: int = 0         # in the ledger under a listed folder or prefix, but no longer listed


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """The images that failed for one reason."""

    status: str
    error: str
    images: int
    example: str              # the first of their uris in alphabetical order


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result at the end of a run, for the listed images and for the whole output."""

    listed: dict[str, int]            # listed images by status; statuses without images have 0
    output: dict[str, int]            # all images of the output by status
    errors: tuple[ErrorKind, ...]     # of the listed images, the most frequent first, at most `ERROR_KINDS`
    other_kinds: int                  # further kinds of errors
    other_images: int                 # images with one of these
    repeated: bool                    # the ledger has a uri twice; `ledger.repair_duplicates` repairs it


class TodoJoin:
    """Joins the listing with the ledger: what is to do before the run, and the outcome after it. A context manager.

    Call `add_listing` and `add_ledger`, then `compute` once, then the other methods.
    """

    def __init__(self) -> None:
        self._folder = ScratchFolder()
        self._spool = pa.OSFile(self._spool_path, "wb")
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_stream(self._spool, LISTING, options=options)
        self._rows = 0
        self._database = duckdb.connect(
            ":memory:", config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(self._folder.path)}
        )
        self._database.execute("SET enable_progress_bar = false; SET preserve_insertion_order = false")
        self._database.execute(
            "CREATE TABLE known (key UHUGEINT, retry BOOLEAN, etag UBIGINT, mtime TIMESTAMPTZ, file_bytes BIGINT, "
            "below BOOLEAN)"
        )
        self._todo_states: tuple[int, ...] = ()
        self._repaired: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._close_spool()
        self._folder.close()

    def add_listing(self, rows: pa.Table) -> None:
        """Add rows of `schemas.LISTING`; duplicates are allowed."""
        self._writer.write_table(rows.select(LISTING.names).cast(LISTING), max_chunksize=_SPOOL_ROWS)
        self._rows += len(rows)

    def add_ledger(self, rows: pa.Table, scopes: Sequence[str] = ()) -> None:
        """Add rows of the ledger: uri, status, etag, mtime, file_bytes.

        scopes: prefixes of uris that were listed completely: a uri that starts with one and is not listed has vanished.
        """
        # Tars are joined by name: 20,000 of them as single conditions would take half a minute per 100,000 rows.
        in_tars = [scope for scope in scopes if scope.find("#") == len(scope) - 1]
        others = [scope for scope in scopes if scope.find("#") != len(scope) - 1]
        below = " OR ".join(["starts_with(uri, ?)"] * len(others))
        below = f"({below or 'false'} OR substr(uri, 1, strpos(uri, '#')) IN (SELECT scope FROM scopes))"
        self._database.register("rows", rows)
        self._database.register("scopes", pa.table({"scope": pa.array(in_tars, pa.string())}))
        self._database.execute(
            f"""INSERT INTO known SELECT md5_number(uri), list_contains(?, status),
                CASE WHEN etag IS NOT NULL THEN hash(etag) END, mtime, file_bytes, {below} FROM rows""",
            [[str(status) for status in RETRIED], *others],
        )

    def compute(
        self, *, redo_changed: bool, erased: Erased | None = None, whole: Sequence[str] = ()
    ) -> TodoCounts:
        """Find the images to do: new ones, those that failed, and with `redo_changed` those whose object has changed.

        erased: images to leave out. whole: containers with all their members listed. If one was damaged before, the
        ledger has a row for the container itself; `uris_to_drop` names it.
        """
        self._todo_states = (_NEW, _RETRIED, _CHANGED) if redo_changed else (_NEW, _RETRIED)
        self._join_listing()
        if erased is not None and len(erased.hashes):
            self._database.register("erased", pa.table({"hash": erased.hashes}))
            self._database.execute(_LEAVE_OUT_ERASED, {"salt": erased.salt})
        self._database.execute(f"CREATE VIEW to_do AS SELECT * FROM todo WHERE state IN {self._todo_states}")
        vanished = self._close_ledger(whole)
        states = dict(self._database.execute("SELECT state, count(*) FROM todo GROUP BY state").fetchall())
        images = sum(states.get(state, 0) for state in self._todo_states)
        listed = sum(states.values())
        return TodoCounts(
            images=images,
            listed=listed,
            duplicates=self._rows - listed,
            done=listed - images - states.get(_ERASED, 0),
            changed=states.get(_CHANGED, 0),
            retried=states.get(_RETRIED, 0),
            erased=states.get(_ERASED, 0),
            vanished=vanished,
        )

    def _join_listing(self) -> None:
        """Create the table todo, one row per listed uri, and delete the listing's file."""
        self._close_spool()
        with pa.OSFile(self._spool_path) as file:
            self._database.register("listing", pa.ipc.open_stream(file))
            self._database.execute(_JOIN)
            self._database.unregister("listing")
        Path(self._spool_path).unlink()
        [(repeated,)] = self._database.execute("SELECT count(*) > count(DISTINCT key) FROM todo").fetchall()
        if repeated:
            self._database.execute(_MERGE)

    def _close_ledger(self, whole: Sequence[str]) -> int:
        """Note the repaired containers, then drop the ledger; returns how many of its images have vanished."""
        self._database.register("whole", pa.table({"uri": pa.array(whole, pa.string())}))
        lost = "SELECT md5_number(uri) AS key, uri FROM whole SEMI JOIN known ON md5_number(uri) = key"
        self._repaired = [uri for _, uri in self._database.execute(lost).fetchall()]
        [(vanished,)] = self._database.execute(
            f"SELECT count(*) FROM known ANTI JOIN todo USING (key) ANTI JOIN ({lost}) repaired USING (key) WHERE below"
        ).fetchall()
        self._database.execute("DROP TABLE known")
        return int(vanished)

    def rows(self, batch_rows: int) -> Iterator[pa.Table]:
        """The rows to do (`schemas.LISTING`), each uri once, in tables of `batch_rows` rows; the last one has fewer.

        They are sorted by name, and by offset within a container, so that neighbours share a folder, a prefix or a tar.
        """
        found = self._database.sql(f"SELECT {LISTING_COLUMNS} FROM to_do ORDER BY {NEIGHBOURS}")
        return in_tables(found, LISTING, batch_rows)

    def uris_to_drop(self) -> pa.Array:
        """The uris (string) whose old rows must leave the ledger: images to do again, and repaired containers."""
        again = self._database.sql(
            "SELECT uri FROM todo WHERE list_contains(?, state) ORDER BY uri", params=[list(self._todo_states[1:])]
        ).to_arrow_table()["uri"]
        return pa.concat_arrays([again.cast(pa.string()).combine_chunks(), pa.array(self._repaired, pa.string())])

    def outcome(self, ledger: Iterator[pa.Table]) -> Outcome:
        """The result for the listed images and for the output. `ledger`: tables of uri, status and error."""
        self._database.execute(
            "CREATE OR REPLACE TABLE ended (key UHUGEINT, status VARCHAR, error VARCHAR, uri VARCHAR)"
        )
        for rows in ledger:
            self._database.register("rows", rows)
            self._database.execute(
                """INSERT INTO ended SELECT md5_number(uri), status, error,
                   CASE WHEN error IS NOT NULL THEN uri END FROM rows"""
            )
        [(repeated,)] = self._database.execute("SELECT count(*) - count(DISTINCT key) FROM ended").fetchall()
        listed = "ended SEMI JOIN todo USING (key)"
        kinds = self._database.execute(
            f"""SELECT status, error, count(*) AS images, min(uri) FROM {listed} WHERE error IS NOT NULL
                GROUP BY status, error ORDER BY images DESC, status, error"""
        ).fetchall()
        return Outcome(
            listed=self._counts(listed),
            output=self._counts("ended"),
            errors=tuple(ErrorKind(*kind) for kind in kinds[:ERROR_KINDS]),
            other_kinds=len(kinds[ERROR_KINDS:]),
            other_images=sum(images for _, _, images, _ in kinds[ERROR_KINDS:]),
            repeated=repeated > 0,
        )

    def moved(self, ledger: Iterator[pa.Table], run_id: str) -> int:
        """How many images of this run have the content of images that were there before, under other names.

        ledger: tables of sha256 and run_id. Empty files are equal, and no image was moved.
        """
        self._database.execute("CREATE OR REPLACE TABLE contents (content UBIGINT, fresh BOOLEAN)")
        for rows in ledger:
            self._database.register("rows", rows)
            self._database.execute(
                "INSERT INTO contents SELECT hash(sha256), run_id = ? FROM rows WHERE sha256 <> ?", [run_id, _EMPTY]
            )
        [(images,)] = self._database.execute(
            "SELECT count(*) FROM contents WHERE fresh AND content IN (SELECT content FROM contents WHERE NOT fresh)"
        ).fetchall()
        self._database.execute("DROP TABLE contents")
        return int(images)

    def _counts(self, table: str) -> dict[str, int]:
        counted = dict(self._database.execute(f"SELECT status, count(*) FROM {table} GROUP BY status").fetchall())
        return {status.value: counted.get(status.value, 0) for status in Status}

    @property
    def database(self) -> duckdb.DuckDBPyConnection:
        """With the view `to_do` after `compute`: key, and the columns of `schemas.LISTING`. See `Duplicates`."""
        return self._database

    def leave_out(self, keys: str) -> None:
        """Take the images of a table with their keys out of the to-do: their rows are copied."""
        self._database.execute(f"UPDATE todo SET state = {_COPIED} WHERE key IN (SELECT key FROM {keys})")

    def put_back(self, keys: str) -> None:
        """Make the images of this table the to-do, after all others of it are done."""
        self._database.execute(f"UPDATE todo SET state = {_DONE} WHERE state IN {self._todo_states}")
        self._database.execute(f"UPDATE todo SET state = {_NEW} WHERE key IN (SELECT key FROM {keys})")

    @property
    def _spool_path(self) -> str:
        return str(self._folder.path / "listing.arrow")

    def _close_spool(self) -> None:
        if not self._spool.closed:
            self._writer.close()
            self._spool.close()


def in_tables(found: duckdb.DuckDBPyRelation, schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """What a query finds, in tables of so many rows; the last one has fewer."""
    waiting = schema.empty_table()
    for batch in found.to_arrow_reader(rows):
        waiting = pa.concat_tables([waiting, pa.table(batch).cast(schema)])
        while len(waiting) >= rows:
            yield waiting.slice(0, rows)
            waiting = waiting.slice(rows)
    if len(waiting):
        yield waiting
