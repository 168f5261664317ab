"""The parts of an output, the ledger that they form, and the rewrite that removes rows.

A part is two files of one name, `faces/<name>.parquet` and `images/<name>.parquet`, written in this order. It is
committed when both exist. The ledger is the table images/ of all committed parts. All functions that write need the
lease.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schemas
from pipeline.output.lease import LeaseLost
from pipeline.storage import Storage

FACES, IMAGES, REWRITE = "faces", "images", "_rewrite"
LEDGER_COLUMNS = ("uri", "status", "etag", "mtime", "file_bytes")
_PART = re.compile(r"((?:part|retry)-.+-[0-9a-f]{16})\.parquet")    # what `part_name` gives; other files are not ours
_INTENT = f"{REWRITE}/intent.json"
_READ_THREADS = 16
_SCANNED_PARTS = 64      # 128,000 rows at the usual size of a part
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
    storage.write(_path(FACES, name), to_parquet(faces))
    image_bytes = to_parquet(images)
    try:
        check()
    except LeaseLost:
        storage.delete(_path(FACES, name))
        raise
    storage.write(_path(IMAGES, name), image_bytes)
    try:
        check()
    except LeaseLost:
        # The other run either began before the images were written and deleted the faces, or it counts the part.
        try:
            storage.open(_path(FACES, name)).close()
        except FileNotFoundError:
            storage.delete(_path(IMAGES, name))
        raise


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    out = pa.BufferOutputStream()
    dictionary = [name for name in _DICTIONARY if name in table.column_names]
    pq.write_table(table, out, compression="zstd", use_dictionary=dictionary)
    content: bytes = out.getvalue().to_pybytes()
    return content


def committed_parts(storage: Storage) -> list[str]:
    """The names of the committed parts, sorted."""
    return sorted(_names(storage, FACES) & _names(storage, IMAGES))


def remove_halves(storage: Storage) -> int:
    """Delete every file whose other half is missing, left by a killed run; returns how many."""
    faces, images = _names(storage, FACES), _names(storage, IMAGES)
    halves = [_path(FACES, name) for name in faces - images] + [_path(IMAGES, name) for name in images - faces]
    storage.delete(*halves)
    return len(halves)


def remove_parts(storage: Storage) -> None:
    """Delete all parts, single halves, and the files of a rewrite."""
    for folder in (IMAGES, FACES):
        storage.delete(*(_path(folder, name) for name in _names(storage, folder)))
    storage.delete_tree(REWRITE)


def foreign_tables(storage: Storage) -> list[str]:
    """The Parquet files in faces/ and images/ that no run wrote; readers of the folders would read them too."""
    return [
        file.path for folder in (FACES, IMAGES) for file in storage.list(folder)
        if file.path.endswith(".parquet") and not _PART.fullmatch(file.path.rsplit("/", 1)[-1])
    ]


def read_ledger(
    storage: Storage, columns: tuple[str, ...] = LEDGER_COLUMNS, *, only: pa.Array | pa.ChunkedArray | None = None
) -> pa.Table:
    """These columns of the ledger, and `part`, the name of each row's part.

    only: the uris whose rows to read; then `columns` must have `uri`. Memory holds only these rows.
    """
    schema = pa.schema([*(schemas.IMAGES.field(name) for name in columns), ("part", pa.string())])
    return pa.concat_tables([schema.empty_table(), *scan_ledger(storage, columns, only=only)])


def scan_ledger(
    storage: Storage, columns: tuple[str, ...] = LEDGER_COLUMNS, *, only: pa.Array | pa.ChunkedArray | None = None
) -> Iterator[pa.Table]:
    """As `read_ledger`, in tables of some parts each."""

    def read(name: str) -> pa.Table:
        table = _read_columns(storage, _path(IMAGES, name), columns)
        if only is not None:
            table = table.filter(pc.is_in(table["uri"], value_set=only))
        names = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), pa.array([name]))
        return table.replace_schema_metadata(None).append_column("part", names.cast(pa.string()))

    parts = committed_parts(storage)
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        for start in range(0, len(parts), _SCANNED_PARTS):
            yield pa.concat_tables(threads.map(read, parts[start : start + _SCANNED_PARTS]))


def commonest_error(storage: Storage, part: str) -> str | None:
    """The most frequent error of a part's images; None if they have none."""
    errors = pc.value_counts(_read_columns(storage, _path(IMAGES, part), ("error",))["error"].drop_null()).to_pylist()
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
    with storage.open(path) as file, pq.ParquetFile(file) as parquet:
        return parquet.read(columns=list(columns))


def rewrite_parts(
    storage: Storage, run_id: str, drop: Mapping[str, pa.Array], before_commit: Callable[[], None] | None = None
) -> None:
    """Remove images and their faces from the output. `drop` maps names of parts to the uris to remove from each.

    Three steps: write the remaining rows under `_rewrite/`, write the intent, carry it out. After a crash at any moment
    `finish_rewrite` drops the first step, or completes the third.
    before_commit: called just before the intent is written; it may raise to stop the rewrite.
    """
    add = []
    for name, uris in drop.items():
        images, faces = (_without(pq.read_table(pa.BufferReader(storage.read(_path(folder, name)))), uris)
                         for folder in (IMAGES, FACES))
        if len(images):
            kept = part_name(name.split("-", 1)[0], run_id, images["uri"].to_pylist())
            storage.write(_path(f"{REWRITE}/{FACES}", kept), to_parquet(faces))
            storage.write(_path(f"{REWRITE}/{IMAGES}", kept), to_parquet(images))
            add.append(kept)
    if drop:
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
    for name in intent["remove"]:
        storage.delete(_path(IMAGES, name))
        storage.delete(_path(FACES, name))
    for name in intent["add"]:
        for folder in (FACES, IMAGES):
            storage.write(_path(folder, name), storage.read(_path(f"{REWRITE}/{folder}", name)))
    storage.delete(_INTENT)
    storage.delete_tree(REWRITE)
    return True


def drop_uris(
    storage: Storage,
    run_id: str,
    uris: pa.Array | pa.ChunkedArray,
    before_commit: Callable[[], None] | None = None,
) -> None:
    """Remove these uris and their faces from all parts. before_commit: see `rewrite_parts`."""
    if len(uris):
        rewrite_parts(storage, run_id, _by_part(read_ledger(storage, ("uri",), only=uris)), before_commit)


def repair_duplicates(storage: Storage, run_id: str, before_commit: Callable[[], None] | None = None) -> int:
    """Keep each uri only in the first of its parts; returns the number of removed rows.

    Duplicates come only from a write that Ray repeated together with other rows. before_commit: see `rewrite_parts`.
    """
    ledger = read_ledger(storage, ("uri",))
    if len(ledger) == pc.count_distinct(ledger["uri"]).as_py():
        return 0
    ledger = ledger.sort_by([("uri", "ascending"), ("part", "ascending")])
    uris = ledger["uri"].combine_chunks()
    again = pc.equal(uris.slice(1), uris.slice(0, len(uris) - 1))
    repeated = ledger.slice(1).filter(again)
    rewrite_parts(storage, run_id, _by_part(repeated), before_commit)
    return len(repeated)


def _by_part(rows: pa.Table) -> dict[str, pa.Array]:
    grouped = rows.select(["part", "uri"]).group_by("part").aggregate([("uri", "list")])
    return {row["part"]: pa.array(row["uri_list"], pa.string()) for row in grouped.to_pylist()}


def _without(table: pa.Table, uris: pa.Array) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["uri"], value_set=uris)))


def _names(storage: Storage, folder: str) -> set[str]:
    found = (_PART.fullmatch(file.path.rsplit("/", 1)[-1]) for file in storage.list(folder))
    return {match[1] for match in found if match}


def _path(folder: str, name: str) -> str:
    return f"{folder}/{name}.parquet"
