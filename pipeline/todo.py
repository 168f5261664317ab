"""What is left to do: the listing less the ledger, computed by DuckDB, which spills to disk where memory ends."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batch import RETRIED
from pipeline.erased import Erased
from pipeline.schemas import LISTING

MEMORY_LIMIT = "2GB"

# An etag tells for sure; where one is missing, size and time tell. What is not known on both sides has not changed.
_CHANGED = """
    CASE WHEN wanted.etag IS NOT NULL AND known.etag IS NOT NULL THEN wanted.etag <> known.etag
         ELSE coalesce(wanted.size <> known.file_bytes, false) OR coalesce(wanted.mtime <> known.mtime, false) END
"""

# Rows of one uri are merged: the result does not depend on their order, and 3 million names take 7 s, where picking
# one row of each (DISTINCT ON) took 38 s. A uri that a crash left twice in the ledger is done if one of its rows is.
_PLAN = f"""
    CREATE TABLE plan AS
    WITH wanted AS (SELECT uri, min(container) AS container, min("offset") AS "offset", min(size) AS size,
                           min(etag) AS etag, min(mtime) AS mtime FROM listing GROUP BY uri),
         known AS (SELECT uri, bool_and(list_contains($retried, status)) AS retry, min(etag) AS etag,
                          min(mtime) AS mtime, min(file_bytes) AS file_bytes FROM ledger GROUP BY uri)
    SELECT wanted.*, CASE WHEN known.uri IS NULL THEN 'new' WHEN known.retry THEN 'retried'
                          WHEN {_CHANGED} THEN 'changed' ELSE 'done' END AS state
    FROM wanted LEFT JOIN known ON wanted.uri = known.uri
"""

# Only what would be done is hashed: 0.3 s for a million names, nothing where the list is empty.
_LEAVE_OUT_ERASED = """
    UPDATE plan SET state = 'erased'
    WHERE state <> 'done' AND sha256(concat($salt, uri)) IN (SELECT hash FROM erased)
"""


@dataclass(frozen=True, slots=True)
class Todo:
    """The work of a run, and how it came about; `listed` = `done` + `erased` + rows to do."""

    rows: pa.Table            # of `schemas.LISTING`, each uri once, in the order to read them
    drop: pa.ChunkedArray     # string: the uris among them that have rows in the output already
    listed: int               # different uris
    duplicates: int           # further rows of the same uris
    done: int                 # in the ledger for good
    changed: int              # objects that differ from what the ledger saw; among `done` unless they are redone
    retried: int              # in the ledger as fetch_failed or failed
    erased: int = 0           # left out for good: `jobs.erase` has taken them out of the output


def plan_todo(listing: pa.Table, ledger: pa.Table, *, redo_changed: bool, erased: Erased | None = None) -> Todo:
    """The rows of `listing` (`schemas.LISTING`) that `ledger` (uri, status, etag, mtime, file_bytes) does not have.

    Those whose fetch or processing failed are done again, and with `redo_changed` those whose object has changed.
    What is on the list of `erased` is not done.
    The order is by name, and by place within a container: neighbours share a folder, a prefix, a tar, so that reading a
    block stays in one of them, while the blocks read at one time are spread over all of them.
    """
    redone = ("new", "retried", "changed") if redo_changed else ("new", "retried")
    with (
        tempfile.TemporaryDirectory(prefix="facelake-todo-") as folder,
        duckdb.connect(Path(folder, "todo.duckdb"), config={"memory_limit": MEMORY_LIMIT}) as database,
    ):
        database.execute("SET enable_progress_bar = false")
        database.register("listing", listing.select(LISTING.names))
        database.register("ledger", ledger.select(["uri", "status", "etag", "mtime", "file_bytes"]))
        database.execute(_PLAN, {"retried": [str(status) for status in RETRIED]})
        if erased is not None and len(erased.hashes):
            database.register("erased", pa.table({"hash": erased.hashes}))
            database.execute(_LEAVE_OUT_ERASED, {"salt": erased.salt})
        counts = dict(database.sql("SELECT state, count(*) FROM plan GROUP BY state").fetchall())
        rows = database.sql(
            f"""SELECT * FROM plan WHERE state IN {redone} ORDER BY coalesce(container, uri), "offset", uri"""
        ).to_arrow_table()
    listed = sum(counts.values())
    return Todo(
        rows=rows.select(LISTING.names).cast(LISTING),
        drop=rows.filter(pc.not_equal(rows["state"], "new"))["uri"].cast(pa.string()),
        listed=listed,
        duplicates=listing.num_rows - listed,
        done=listed - rows.num_rows - counts.get("erased", 0),
        changed=counts.get("changed", 0),
        retried=counts.get("retried", 0),
        erased=counts.get("erased", 0),
    )
