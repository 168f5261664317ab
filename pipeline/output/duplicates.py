"""Images of equal content under several names: which need not be computed, and where their rows are.

Only images that may be equal are read: they share the size with another one, of the to-do or of the ledger, and the
etag where that tells the content. The sha256 decides. Memory is that of the database of `TodoJoin`, which spills.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipeline.batch import RETRIED
from pipeline.output.todo import LISTING_COLUMNS, NEIGHBOURS, TodoJoin, in_tables
from pipeline.schemas import LISTING, TIMESTAMP

READ_ROWS = 4096      # images that are read before what was found is kept
SOURCE_COLUMNS = ("uri", "status", "etag", "file_bytes", "sha256", "n_faces")     # of the ledger, with `part`

CONTENTS = pa.schema(
    [("uri", pa.string()), ("sha256", pa.string()), ("n_bytes", pa.int64()), ("etag", pa.string()),
     ("mtime", TIMESTAMP)]
)
"""What was found by reading an image: of its bytes, and what the store says of it."""

COPIES = pa.schema(
    [("uri", pa.string()), ("etag", pa.string()), ("mtime", TIMESTAMP), ("sha256", pa.string()), ("part", pa.string()),
     ("n_faces", pa.int32())]
)
"""An image whose rows are those of another name. sha256: finds the image in `part`, which has these rows."""

# The etag where it follows from the content: S3 gives the MD5, or that of the MD5s of the pieces of an upload and their
# number. (Not for objects that are encrypted with keys of KMS: these look different from one another.) The etag of an
# archive's member is the archive's.
_TOKEN = """CASE WHEN starts_with(uri, 's3://') AND NOT contains(uri, '#')
                  AND regexp_full_match(etag, '[0-9a-f]{32}(-[0-9]+)?') THEN etag END"""

# Two of one size may be equal unless both have such an etag of one kind (the end of it) and these differ.
_CANDIDATES = f"""
    CREATE TABLE candidates AS
    WITH wanted AS (SELECT key, coalesce(n_bytes, size) AS size, {_TOKEN} AS token,
                           contents.key IS NOT NULL AS was_read FROM to_do LEFT JOIN contents USING (key)),
         all_sizes AS (SELECT size, token FROM wanted WHERE size IS NOT NULL UNION ALL SELECT size, token FROM sources),
         by_size AS (SELECT size, count(*) AS n FROM all_sizes GROUP BY ALL HAVING count(*) > 1),
         by_kind AS (SELECT size, substr(token, 33) AS kind, count(*) AS n FROM all_sizes GROUP BY ALL),
         by_token AS (SELECT size, token, count(*) AS n FROM all_sizes GROUP BY ALL)
    SELECT key FROM wanted JOIN by_size USING (size)
    LEFT JOIN by_kind ON by_kind.size = wanted.size AND by_kind.kind = substr(wanted.token, 33)
    LEFT JOIN by_token ON by_token.size = wanted.size AND by_token.token = wanted.token
    WHERE NOT was_read AND by_size.n - coalesce(by_kind.n, 0) + coalesce(by_token.n, 0) > 1
"""

# Of several new images with one content the first by name is computed.
_TWINS = """
    CREATE TABLE twins AS SELECT key, uri, etag, mtime, content FROM (
        SELECT key, uri, coalesce(etag, found_etag) AS etag, coalesce(mtime, found_mtime) AS mtime, content,
               row_number() OVER (PARTITION BY content ORDER BY uri) AS place
        FROM to_do JOIN contents USING (key))
    WHERE place > 1 OR content IN (SELECT content FROM sources)
"""


class Duplicates:
    """Finds the images of the to-do that have the content of others. `join` has computed the to-do.

    First `add_ledger`, with the contents of `without_size` added before, and those of `candidates` after it. Then
    `settle` takes the twins out of the to-do, and `copies` gives those whose content has rows: now, and again when the
    rest was computed and `add_computed` was given the new parts. `forget_copied` follows each time.
    """

    def __init__(self, join: TodoJoin) -> None:
        self._join = join
        self._database = join.database
        self._database.execute(
            "CREATE TABLE contents (key UHUGEINT, content BLOB, n_bytes BIGINT, found_etag VARCHAR, found_mtime "
            "TIMESTAMPTZ);"
            "CREATE TABLE sources (size BIGINT, token VARCHAR, content BLOB, part VARCHAR, n_faces INTEGER)"
        )

    def without_size(self) -> tuple[int, Iterator[pa.Table]]:
        """How many images of the to-do have no size in the listing, and these."""
        return self._rows("WHERE size IS NULL")

    def add_contents(self, rows: pa.Table) -> None:
        """Add what was found by reading images (`CONTENTS`)."""
        self._database.register("rows", rows)
        self._database.execute(
            "INSERT INTO contents SELECT md5_number(uri), unhex(sha256), n_bytes, etag, mtime FROM rows"
        )

    def add_ledger(self, ledger: Iterator[pa.Table]) -> None:
        """Add the ledger, tables of `SOURCE_COLUMNS` and part. Only rows of a size of the to-do are kept."""
        self._database.execute("CREATE TABLE sizes AS SELECT size FROM to_do UNION SELECT n_bytes FROM contents")
        self._add_sources(ledger, "file_bytes IN (SELECT size FROM sizes WHERE size IS NOT NULL)")
        self._database.execute("DROP TABLE sizes")

    def candidates(self) -> tuple[int, Iterator[pa.Table]]:
        """How many images of the to-do may be equal to another and were not read, and these."""
        self._database.execute(_CANDIDATES)
        return self._rows("SEMI JOIN candidates USING (key)")

    def settle(self) -> int:
        """Take the images whose rows can be copied, now or later, out of the to-do; returns how many."""
        self._database.execute(_TWINS)
        self._database.execute("DROP TABLE contents; DROP TABLE candidates")
        self._join.leave_out("twins")
        return self._waiting()

    def add_computed(self, ledger: Iterator[pa.Table]) -> None:
        """Add the parts that this run has computed, tables as for `add_ledger`."""
        self._add_sources(ledger, "unhex(sha256) IN (SELECT content FROM twins)")

    def copies(self, batch_rows: int) -> Iterator[pa.Table]:
        """The images whose content has rows (`COPIES`), sorted by the part that has them."""
        found = self._database.cursor().sql(
            """SELECT uri, etag, mtime, lower(hex(content)) AS sha256, part, n_faces
               FROM twins JOIN (SELECT content, min(part) AS part, arg_min(n_faces, part) AS n_faces FROM sources
                                GROUP BY content) USING (content)
               ORDER BY part, sha256, uri"""
        )
        return in_tables(found, COPIES, batch_rows)

    def forget_copied(self) -> int:
        """Forget the images that `copies` gave, once they are committed; returns how many others wait."""
        self._database.execute("DELETE FROM twins WHERE content IN (SELECT content FROM sources); DELETE FROM sources")
        return self._waiting()

    def put_back(self) -> None:
        """Make those that still wait the to-do: the image with their content failed, or changed meanwhile."""
        self._join.put_back("twins")

    def _rows(self, which: str) -> tuple[int, Iterator[pa.Table]]:
        [(count,)] = self._database.execute(f"SELECT count(*) FROM to_do {which}").fetchall()
        found = self._database.cursor().sql(f"SELECT {LISTING_COLUMNS} FROM to_do {which} ORDER BY {NEIGHBOURS}")
        return int(count), in_tables(found, LISTING, READ_ROWS)

    def _add_sources(self, ledger: Iterator[pa.Table], wanted: str) -> None:
        for rows in ledger:
            self._database.register("rows", rows)
            self._database.execute(
                f"""INSERT INTO sources SELECT file_bytes, {_TOKEN}, unhex(sha256), part, coalesce(n_faces, 0) FROM rows
                    WHERE sha256 IS NOT NULL AND NOT list_contains(?, status) AND {wanted}""",
                [[str(status) for status in RETRIED]],
            )

    def _waiting(self) -> int:
        [(waiting,)] = self._database.execute("SELECT count(*) FROM twins").fetchall()
        return int(waiting)
