"""What is left to do: the listing less the ledger, in memory that does not grow with either.

DuckDB joins the two by the 128-bit MD5 of the uri (two names of ten million have the same one with a probability of
10⁻²⁵) and spills to disk where memory ends; the listing waits in a file. 10 million names against 9 million done ones
take 1 GB (`jobs.bench plan`).
"""

from __future__ import annotations

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
ERROR_KINDS = 12              # that an outcome names; the rest is counted
_SPOOL_ROWS = 100_000         # a batch of the listing's file

# States in the order in which they win where one uri has several rows: a uri that a crash left twice in the ledger is
# done if one of its rows is, one that was listed twice has changed if all its rows say so.
_DONE, _CHANGED, _RETRIED, _NEW, _ERASED = range(5)

# An etag tells for sure; where one is missing, size and time tell. What is not known on both sides has not changed.
_HAS_CHANGED = """
    CASE WHEN wanted.etag IS NOT NULL AND known.etag IS NOT NULL THEN hash(wanted.etag) <> known.etag
         ELSE coalesce(wanted.size <> known.file_bytes, false) OR coalesce(wanted.mtime <> known.mtime, false) END
"""

# Of what is done only the key is kept. A uri that is there twice, in the listing or in the ledger, has several rows.
_PLAN = f"""
    CREATE TABLE plan AS
    SELECT key, state, {', '.join(f'CASE WHEN state <> {_DONE} THEN "{n}" END AS "{n}"' for n in LISTING.names)}
    FROM (SELECT wanted.*, CASE WHEN known.key IS NULL THEN {_NEW} WHEN known.retry THEN {_RETRIED}
                                WHEN {_HAS_CHANGED} THEN {_CHANGED} ELSE {_DONE} END AS state
          FROM (SELECT *, md5_number(uri) AS key FROM listing) wanted LEFT JOIN known ON wanted.key = known.key)
"""

# Rows of one uri become one, the same whatever their order; seldom needed, and not much faster than the join.
_MERGE = f"""
    CREATE TABLE merged AS SELECT key, min(state) AS state, {', '.join(f'min("{n}") AS "{n}"' for n in LISTING.names)}
    FROM plan GROUP BY key;
    DROP TABLE plan;
    ALTER TABLE merged RENAME TO plan
"""

# Only what would be done is hashed: 0.3 s for a million names, nothing where the list is empty.
_LEAVE_OUT_ERASED = f"""
    UPDATE plan SET state = {_ERASED}
    WHERE state <> {_DONE} AND sha256(concat($salt, uri)) IN (SELECT hash FROM erased)
"""


@dataclass(frozen=True, slots=True)
class Todo:
    """How the work of a run came about; `listed` = `done` + `erased` + `images`."""

    images: int               # to do
    listed: int               # different uris
    duplicates: int           # further rows of the same uris
    done: int                 # in the ledger for good
    changed: int              # objects that differ from what the ledger saw; among `done` unless they are redone
    retried: int              # in the ledger as fetch_failed or failed
    erased: int = 0           # left out for good: `jobs.erase` has taken them out of the output
    vanished: int = 0         # in the ledger, below a listed folder or prefix, and not listed any more


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """Images that failed for the same reason."""

    status: str
    error: str
    images: int
    example: str              # the first uri of them, by name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the ledger says in the end, of the listed images and of the whole output."""

    listed: dict[str, int]            # images by status, every status named
    output: dict[str, int]
    errors: tuple[ErrorKind, ...]     # of the listed ones, the most frequent first, `ERROR_KINDS` at most
    other_kinds: int                  # how many more kinds there are
    other_images: int                 # and of how many images
    repeated: bool                    # whether a uri is there twice, which `ledger.repair_duplicates` mends


class Planner:
    """Takes the listing, then the ledger, tells what is to do, and in the end what became of it. A context manager."""

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
        self._redone: tuple[int, ...] = ()
        self._mended: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._close_spool()
        self._folder.close()

    def add_listing(self, rows: pa.Table) -> None:
        """Take more rows of `schemas.LISTING`; duplicates are fine."""
        self._writer.write_table(rows.select(LISTING.names).cast(LISTING), max_chunksize=_SPOOL_ROWS)
        self._rows += len(rows)

    def add_ledger(self, rows: pa.Table, scopes: Sequence[str] = ()) -> None:
        """Take more rows of the ledger: uri, status, etag, mtime, file_bytes.

        scopes: beginnings of uris, everything below which was listed: what is not listed any more has vanished.
        """
        # One by one 20,000 tars would cost half a minute every 100,000 rows; by their names they cost one join.
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

    def plan(self, *, redo_changed: bool, erased: Erased | None = None, whole: Sequence[str] = ()) -> Todo:
        """Work out what of the listing the ledger does not have; called once, when both are complete.

        whole: containers all of whose members are listed; the ledger may have a row that stood for lost ones.
        Those whose fetch or processing failed are done again, and with `redo_changed` those whose object has changed.
        What is on the list of `erased` is not done.
        """
        self._close_spool()
        self._redone = (_RETRIED, _CHANGED) if redo_changed else (_RETRIED,)
        with pa.OSFile(self._spool_path) as file:
            self._database.register("listing", pa.ipc.open_stream(file))
            self._database.execute(_PLAN)
            self._database.unregister("listing")
        Path(self._spool_path).unlink()
        [(repeated,)] = self._database.execute("SELECT count(*) > count(DISTINCT key) FROM plan").fetchall()
        if repeated:
            self._database.execute(_MERGE)
        if erased is not None and len(erased.hashes):
            self._database.register("erased", pa.table({"hash": erased.hashes}))
            self._database.execute(_LEAVE_OUT_ERASED, {"salt": erased.salt})
        self._database.register("whole", pa.table({"uri": pa.array(whole, pa.string())}))
        lost = "SELECT md5_number(uri) AS key, uri FROM whole SEMI JOIN known ON md5_number(uri) = key"
        self._mended = [uri for _, uri in self._database.execute(lost).fetchall()]
        [(vanished,)] = self._database.execute(
            f"SELECT count(*) FROM known ANTI JOIN plan USING (key) ANTI JOIN ({lost}) mended USING (key) WHERE below"
        ).fetchall()
        self._database.execute("DROP TABLE known")
        states = dict(self._database.execute("SELECT state, count(*) FROM plan GROUP BY state").fetchall())
        images = sum(states.get(state, 0) for state in (_NEW, *self._redone))
        listed = sum(states.values())
        return Todo(
            images=images,
            listed=listed,
            duplicates=self._rows - listed,
            done=listed - images - states.get(_ERASED, 0),
            changed=states.get(_CHANGED, 0),
            retried=states.get(_RETRIED, 0),
            erased=states.get(_ERASED, 0),
            vanished=vanished,
        )

    def rows(self, batch_rows: int) -> Iterator[pa.Table]:
        """The rows to do (`schemas.LISTING`), each uri once, `batch_rows` at a time, the last ones fewer.

        The order is by name, and by place within a container: neighbours share a folder, a prefix, a tar.
        """
        reader = self._database.sql(
            f"""SELECT {', '.join(f'"{name}"' for name in LISTING.names)} FROM plan
                WHERE state IN {(_NEW, *self._redone)} ORDER BY coalesce(container, uri), "offset", uri"""
        ).to_arrow_reader(batch_rows)
        waiting = LISTING.empty_table()
        for batch in reader:
            waiting = pa.concat_tables([waiting, pa.table(batch).cast(LISTING)])
            while len(waiting) >= batch_rows:
                yield waiting.slice(0, batch_rows)
                waiting = waiting.slice(batch_rows)
        if len(waiting):
            yield waiting

    def redone(self) -> pa.Array:
        """The uris whose rows in the ledger must go (string): of images to do, and of containers that are whole now."""
        states = self._redone * 2     # DuckDB reads "(1,)" as no list
        table = self._database.sql(f"SELECT uri FROM plan WHERE state IN {states} ORDER BY uri").to_arrow_table()
        return pa.concat_arrays([table["uri"].cast(pa.string()).combine_chunks(), pa.array(self._mended, pa.string())])

    def outcome(self, ledger: Iterator[pa.Table]) -> Outcome:
        """What became of the listed images: `ledger` gives rows of uri, status and error."""
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
        listed = "ended SEMI JOIN plan USING (key)"
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

    def _counts(self, table: str) -> dict[str, int]:
        counted = dict(self._database.execute(f"SELECT status, count(*) FROM {table} GROUP BY status").fetchall())
        return {status.value: counted.get(status.value, 0) for status in Status}

    @property
    def _spool_path(self) -> str:
        return str(self._folder.path / "listing.arrow")

    def _close_spool(self) -> None:
        if not self._spool.closed:
            self._writer.close()
            self._spool.close()
