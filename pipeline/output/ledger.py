"""The parts of an output, the ledger that they form, and the rewrite that removes rows.

A part is two files of one name, `faces/<name>.parquet` and `images/<name>.parquet`, written in this order. It is
committed when both exist. The ledger is the table images/ of all committed parts. All functions that write need the
lease.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schemas
from pipeline.errors import OutputError, first_line, is_damage
from pipeline.output.lease import LeaseLost
from pipeline.storage import Storage
from pipeline.storage.scratch import ScratchFolder

FACES, IMAGES, REWRITE = "faces", "images", "_rewrite"
LEDGER_COLUMNS = ("uri", "status", "etag", "mtime", "file_bytes")
_PART = re.compile(r"((?:part|retry)-.+-[0-9a-f]{16})\.parquet")    # what `part_name` gives; other files are not ours
_INTENT = f"{REWRITE}/intent.json"
_READ_THREADS = 16
_REWRITE_THREADS = 4     # a part may have 110 MB
_MEMORY_LIMIT = "700MB"
_SCANNED_PARTS = 64      # 128,000 rows at the usual size of a part
# zstd makes vectors 8% smaller, and reading them takes twice the time. BYTE_STREAM_SPLIT makes them 16% smaller, but
# Spark cannot read it by default (its issue SPARK-56894).
_UNCOMPRESSED = ("embedding",)
_DICTIONARY = ["uri", "status", "error", "format", "run_id", "detector", "keypointer", "embedder"]


def part_name(kind: str, run_id: str, uris: Iterable[str]) -> str:
    """The name of the part with these images; `kind` is "part", or "retry" for images that the next run tries again.

    It depends only on the content, so that a write that Ray repeats overwrites itself.
    """
    digest = hashlib.sha256("\n".join(sorted(uris)).encode()).hexdigest()
    return f"{kind}-{run_id}-{digest[:16]}"


def write_pair(storage: Storage, name: str, faces: pa.Table, images: pa.Table, check: Callable[[], None]) -> None:
    """Commit one part: faces, then images.

    check: raises LeaseLost if another run has taken over the output; called before each file and after the second.
    This writer may outlive its driver, or be suspended and wake up when another run holds the lease. Then it raises
    LeaseLost, and deletes what it wrote unless the other run has counted the part.
    """
    check()
    storage.write(path_of(FACES, name), to_parquet(faces))
    image_bytes = to_parquet(images)
    try:
        check()
    except LeaseLost:
        storage.delete(path_of(FACES, name))
        raise
    storage.write(path_of(IMAGES, name), image_bytes)
    try:
        check()
    except LeaseLost:
        # The other run either began before the images were written and deleted the faces, or it counts the part.
        try:
            storage.open(path_of(FACES, name)).close()
        except FileNotFoundError:
            storage.delete(path_of(IMAGES, name))
        raise


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    out = pa.BufferOutputStream()
    dictionary = [name for name in _DICTIONARY if name in table.column_names]
    compression = {_path(field): "none" if field.name in _UNCOMPRESSED else "zstd" for field in table.schema}
    pq.write_table(table, out, compression=compression, use_dictionary=dictionary)
    content: bytes = out.getvalue().to_pybytes()
    return content


def _path(field: pa.Field) -> str:
    """What Parquet calls the values of a column."""
    listed = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    return f"{field.name}.list.element" if listed else str(field.name)


@dataclass(frozen=True, slots=True)
class Files:
    """One listing of faces/ and images/. A listing of a large output is slow, so a run makes two.

    faces, images: names of parts with that half. foreign: other Parquet files, which readers of the folders read too.
    """

    faces: frozenset[str]
    images: frozenset[str]
    foreign: tuple[str, ...]

    @property
    def committed(self) -> list[str]:
        """The names of the committed parts, sorted."""
        return sorted(self.faces & self.images)


def list_files(storage: Storage) -> Files:
    """What is in faces/ and images/."""
    names: dict[str, set[str]] = {FACES: set(), IMAGES: set()}
    foreign = []
    for folder, found in names.items():
        for file in storage.list(folder):
            if match := _PART.fullmatch(file.path.rsplit("/", 1)[-1]):
                found.add(match[1])
            elif file.path.endswith(".parquet"):
                foreign.append(file.path)
    return Files(frozenset(names[FACES]), frozenset(names[IMAGES]), tuple(foreign))


def committed_parts(storage: Storage) -> list[str]:
    """The names of the committed parts, sorted."""
    return list_files(storage).committed


def remove_halves(storage: Storage, files: Files | None = None) -> int:
    """Delete every file whose other half is missing, left by a killed run; returns how many. files: what is there."""
    files = files or list_files(storage)
    halves = [path_of(FACES, name) for name in files.faces - files.images]
    halves += [path_of(IMAGES, name) for name in files.images - files.faces]
    storage.delete(*halves)
    return len(halves)


def remove_parts(storage: Storage) -> None:
    """Delete all parts, single halves, and the files of a rewrite."""
    files = list_files(storage)
    for folder, names in ((IMAGES, files.images), (FACES, files.faces)):
        storage.delete(*(path_of(folder, name) for name in names))
    storage.delete_tree(REWRITE)


def read_ledger(
    storage: Storage, columns: tuple[str, ...] = LEDGER_COLUMNS, *, only: pa.Array | pa.ChunkedArray | None = None
) -> pa.Table:
    """These columns of the ledger, and `part`, the name of each row's part.

    only: the uris whose rows to read; then `columns` must have `uri`. Memory holds only these rows.
    """
    schema = pa.schema([*(schemas.IMAGES.field(name) for name in columns), ("part", pa.string())])
    return pa.concat_tables([schema.empty_table(), *scan_ledger(storage, columns, only=only)])


def scan_ledger(
    storage: Storage, columns: tuple[str, ...] = LEDGER_COLUMNS, *, only: pa.Array | pa.ChunkedArray | None = None,
    parts: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """As `read_ledger`, in tables of some parts each. parts: the committed ones, if they are known."""
    wanted = None if only is None else _Wanted(only)

    def read(name: str) -> pa.Table:
        with storage.open(path_of(IMAGES, name)) as file, naming_damage(storage, name), pq.ParquetFile(file) as parquet:
            if wanted and not wanted.may_be_in(parquet):
                table = parquet.schema_arrow.empty_table().select(columns)
            else:
                table = parquet.read(columns=list(columns))
        if wanted:
            table = table.filter(pc.is_in(table["uri"], value_set=wanted.uris))
        names = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), pa.array([name]))
        return table.replace_schema_metadata(None).append_column("part", names.cast(pa.string()))

    parts = committed_parts(storage) if parts is None else parts
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        for start in range(0, len(parts), _SCANNED_PARTS):
            yield pa.concat_tables(threads.map(read, parts[start : start + _SCANNED_PARTS]))


class _Wanted:
    """Uris to look for. The footer of a part tells its first and last uri, so that most parts need not be read."""

    def __init__(self, uris: pa.Array | pa.ChunkedArray) -> None:
        self.uris = uris
        self._sorted = sorted(uri.encode() for uri in uris.to_pylist())

    def may_be_in(self, parquet: pq.ParquetFile) -> bool:
        """Whether a part, which is sorted by uri, may have one of them."""
        column = parquet.schema_arrow.get_field_index("uri")
        groups = [parquet.metadata.row_group(i).column(column).statistics for i in range(parquet.num_row_groups)]
        for found in groups:
            if found is None or not found.has_min_max:
                return True                          # a very long uri, for example
            first = bisect.bisect_left(self._sorted, found.min.encode())
            if first < len(self._sorted) and self._sorted[first] <= found.max.encode():
                return True
        return False


def commonest_error(storage: Storage, part: str) -> str | None:
    """The most frequent error of a part's images; None if they have none."""
    errors = pc.value_counts(_read_columns(storage, path_of(IMAGES, part), ("error",))["error"].drop_null()).to_pylist()
    return max(errors, key=lambda row: row["counts"])["values"] if errors else None


def count_rows(storage: Storage, uris: pa.Array) -> int:
    """The number of rows with these uris in all our files, single halves and unfinished rewrites included."""

    def count(path: str) -> int:
        found = pc.is_in(_read_columns(storage, path, ("uri",))["uri"], value_set=uris)
        return pc.sum(found).as_py() or 0

    folders = (FACES, IMAGES, f"{REWRITE}/{FACES}", f"{REWRITE}/{IMAGES}")
    paths = [file.path for folder in folders for file in storage.list(folder) if file.path.endswith(".parquet")]
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        return sum(threads.map(count, paths))


def _read_columns(storage: Storage, path: str, columns: Sequence[str]) -> pa.Table:
    """These columns of a file; faster than `pq.read_table` for small files."""
    part = path.rpartition("/")[2].removesuffix(".parquet")
    with storage.open(path) as file, naming_damage(storage, part), pq.ParquetFile(file) as parquet:
        return parquet.read(columns=list(columns))


@contextmanager
def naming_damage(storage: Storage, part: str) -> Iterator[None]:
    """Within it, raise OutputError in place of what pyarrow says of a damaged part."""
    try:
        yield
    except (pa.ArrowException, KeyError, OSError) as error:
        if isinstance(error, FileNotFoundError) or not is_damage(error):
            raise
        raise OutputError(
            f"the part {part} of {storage.root} is damaged: {first_line(error)}; restore it from a backup, or delete "
            "both of its files and run the same jobs.extract command"
        ) from None


def rewrite_parts(
    storage: Storage, run_id: str, drop: Mapping[str, pa.Array], before_commit: Callable[[], None] | None = None
) -> None:
    """Remove images and their faces from the output. `drop` maps names of parts to the uris to remove from each.

    Three steps: write the remaining rows under `_rewrite/`, write the intent, carry it out. After a crash at any moment
    `finish_rewrite` drops the first step, or completes the third.
    before_commit: called just before the intent is written; it may raise to stop the rewrite.
    """

    def rewrite(name: str) -> str | None:
        contents = [storage.read(path_of(folder, name)) for folder in (IMAGES, FACES)]
        with naming_damage(storage, name):
            images, faces = (_without(pq.read_table(pa.BufferReader(content)), drop[name]) for content in contents)
        if not len(images):
            return None
        kept = part_name(name.split("-", 1)[0], run_id, images["uri"].to_pylist())
        storage.write(path_of(f"{REWRITE}/{FACES}", kept), to_parquet(faces))
        storage.write(path_of(f"{REWRITE}/{IMAGES}", kept), to_parquet(images))
        return kept

    if drop:
        with ThreadPoolExecutor(_REWRITE_THREADS) as threads:
            add = sorted(kept for kept in threads.map(rewrite, drop) if kept)
        if before_commit is not None:
            before_commit()
        storage.write(_INTENT, json.dumps({"remove": sorted(drop), "add": add}).encode())
    finish_rewrite(storage)


def finish_rewrite(storage: Storage) -> bool:
    """Complete a rewrite whose intent is written; delete the files of one without. Returns whether there was one."""
    try:
        intent = json.loads(storage.read(_INTENT))
    except FileNotFoundError:
        storage.delete_tree(REWRITE)
        return False

    def add(name: str) -> None:
        for folder in (FACES, IMAGES):
            storage.write(path_of(folder, name), storage.read(path_of(f"{REWRITE}/{folder}", name)))

    for folder in (IMAGES, FACES):
        storage.delete(*(path_of(folder, name) for name in intent["remove"]))
    with ThreadPoolExecutor(_REWRITE_THREADS) as threads:
        list(threads.map(add, intent["add"]))
    storage.delete(_INTENT)
    storage.delete_tree(REWRITE)
    return True


def drop_uris(
    storage: Storage,
    run_id: str,
    uris: pa.Array | pa.ChunkedArray,
    before_commit: Callable[[], None] | None = None,
    parts: Sequence[str] | None = None,
) -> None:
    """Remove these uris and their faces from all parts.

    before_commit: see `rewrite_parts`. parts: the committed ones, if they are known.
    """
    if len(uris):
        schema = pa.schema([schemas.IMAGES.field("uri"), ("part", pa.string())])
        found = pa.concat_tables(
            [schema.empty_table(), *scan_ledger(storage, ("uri",), only=uris, parts=parts)]
        )
        rewrite_parts(storage, run_id, _by_part(found), before_commit)


def repair_duplicates(storage: Storage, run_id: str, before_commit: Callable[[], None] | None = None) -> int:
    """Keep each uri only in the first of its parts; returns the number of removed rows.

    Duplicates come only from a write that Ray repeated together with other rows. before_commit: see `rewrite_parts`.
    """
    repeated = _repeated(storage).sort_by([("uri", "ascending"), ("part", "ascending")])
    if not len(repeated):
        return 0
    uris = repeated["uri"].combine_chunks()
    again = pc.equal(uris.slice(1), uris.slice(0, len(uris) - 1))
    later = repeated.slice(1).filter(again)
    rewrite_parts(storage, run_id, _by_part(later), before_commit)
    return len(later)


def _repeated(storage: Storage) -> pa.Table:
    """The rows (uri, part) of uris that the ledger has more than once. Memory holds 16 bytes an image, or less."""
    with closing(ScratchFolder()) as folder, duckdb.connect(
        ":memory:", config={"memory_limit": _MEMORY_LIMIT, "temp_directory": str(folder.path)}
    ) as database:
        database.execute("CREATE TABLE keys (key UHUGEINT)")
        parts = committed_parts(storage)
        for rows in scan_ledger(storage, ("uri",), parts=parts):
            database.register("rows", rows)
            database.execute("INSERT INTO keys SELECT md5_number(uri) FROM rows")
        database.execute("CREATE TABLE twice AS SELECT key FROM keys GROUP BY key HAVING count(*) > 1; DROP TABLE keys")
        found = [pa.table({"uri": pa.array([], pa.string()), "part": pa.array([], pa.string())})]
        [(any_twice,)] = database.execute("SELECT count(*) > 0 FROM twice").fetchall()
        for rows in scan_ledger(storage, ("uri",), parts=parts if any_twice else []):
            database.register("rows", rows)
            of_twice = database.sql("SELECT uri, part FROM rows WHERE md5_number(uri) IN (SELECT key FROM twice)")
            found.append(of_twice.to_arrow_table().cast(found[0].schema))
        return pa.concat_tables(found)


def _by_part(rows: pa.Table) -> dict[str, pa.Array]:
    grouped = rows.select(["part", "uri"]).group_by("part").aggregate([("uri", "list")])
    return {row["part"]: pa.array(row["uri_list"], pa.string()) for row in grouped.to_pylist()}


def _without(table: pa.Table, uris: pa.Array) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["uri"], value_set=uris)))


def path_of(folder: str, name: str) -> str:
    """The file of a part's half in the output."""
    return f"{folder}/{name}.parquet"
