"""Read an S3 Inventory: a listing of a bucket that S3 writes every day as Parquet or CSV, with a manifest.json.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import threading
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import first_line
from pipeline.input.names import InputError
from pipeline.input.parallel_listing import gather
from pipeline.input.rows import Span, Stretch, listing_table
from pipeline.input.rules import KeyRule
from pipeline.schemas import LISTING, TIMESTAMP
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import StoreOptions, local_path

OLD_VERSION = "old versions"
DELETE_MARKER = "delete markers"
MANIFEST_NAME = "manifest.json"
THREADS = 4                # files read at once; each needs memory for a column chunk or a block of CSV
_BATCH_ROWS = 16_384
_CSV_BLOCK_BYTES = 4 << 20
_READ_BYTES = 1 << 20
_FORMATS = ("CSV", "Parquet")

# The columns that we read: from their name in the fileSchema of CSV to their name in Parquet.
_PARQUET_COLUMNS = {
    "Key": "key", "Size": "size", "LastModifiedDate": "last_modified_date", "ETag": "e_tag",
    "IsLatest": "is_latest", "IsDeleteMarker": "is_delete_marker",
}  # fmt: skip
_TYPES = {
    "Key": pa.string(), "Size": pa.int64(), "LastModifiedDate": TIMESTAMP, "ETag": pa.string(),
    "IsLatest": pa.bool_(), "IsDeleteMarker": pa.bool_(),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """A file of an inventory."""

    key: str
    size: int | None    # bytes


@dataclass(frozen=True, slots=True)
class Inventory:
    """The content of a manifest.json."""

    bucket: str                 # the one that is listed
    files_bucket: str           # the one that holds the files
    file_format: str            # of _FORMATS
    columns: tuple[str, ...]    # of CSV files, in order; not used for Parquet
    files: tuple[File, ...]
    revision: str               # sha256 of manifest.json


def is_inventory(path: str) -> bool:
    """Whether this is the name of an inventory's manifest."""
    return path.rpartition("/")[2] == MANIFEST_NAME


def read_inventory(uri: str, options: StoreOptions) -> Inventory:
    """Read a manifest.json. Raises InputError if it is not one of S3 Inventory, or if its files are ORC."""
    folder, name = posixpath.split(local_path(uri))
    try:
        content = open_storage(folder, options).read(name)
    except OSError as error:
        raise InputError(f"cannot read {uri}: {error.strerror}; check the path and the credentials") from error
    try:
        manifest = json.loads(content)
        inventory = Inventory(
            bucket=str(manifest["sourceBucket"]),
            files_bucket=str(manifest["destinationBucket"]).rpartition(":")[2],   # "arn:aws:s3:::name"
            file_format=str(manifest["fileFormat"]),
            columns=tuple(name.strip() for name in str(manifest["fileSchema"]).split(",")),
            files=tuple(
                File(str(file["key"]), int(file["size"]) if "size" in file else None) for file in manifest["files"]
            ),
            revision=hashlib.sha256(content).hexdigest(),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{uri} is not the manifest.json of an S3 Inventory ({error!r}): check the path") from None
    if inventory.file_format not in _FORMATS:
        raise InputError(
            f"the files of {uri} are {inventory.file_format}: choose Apache Parquet, or CSV, as the output format in "
            "the inventory's configuration, and wait for the next inventory"
        )
    if inventory.file_format == "CSV" and "Key" not in inventory.columns:
        raise InputError(f"{uri} has no column Key in its fileSchema: use the inventory of another day")
    return inventory


def inventory_stretches(
    inventory: Inventory,
    options: StoreOptions,
    skips: KeyRule,
    spans: Iterable[Span],
    threads: int = THREADS,
) -> Iterator[Stretch]:
    """The latest versions of an inventory's objects, as stretches. Reads batch by batch, so memory stays small.

    A position is a file and a row: "00000002:000000065536" comes after 65,536 rows of the third file.
    Raises InputError for a file that cannot be read.
    """
    storage = open_storage(f"s3://{inventory.files_bucket}", options)
    ends = [f"{number + 1:08}" for number in range(len(inventory.files))]
    pieces = iter([piece for span in spans for piece in _cut(span, ends)])
    next_piece = threading.Lock()

    def work(put: Callable[[Stretch], None]) -> None:
        while True:
            with next_piece:
                piece = next(pieces, None)
            if piece is None:
                return
            for stretch in _file_stretches(inventory, storage, skips, piece):
                put(stretch)

    yield from gather(work, threads)


def _cut(span: Span, ends: list[str]) -> Iterator[Span]:
    """The span in pieces of one file each. Positions after the last file belong to the last piece."""
    after, until = span
    while True:
        file = bisect_right(ends, after)
        end = ends[file] if file + 1 < len(ends) else None
        if end is None or (until is not None and until <= end):
            yield after, until
            return
        yield after, end
        after = end


def _file_stretches(inventory: Inventory, storage: Storage, skips: KeyRule, span: Span) -> Iterator[Stretch]:
    """The objects in a span of one file."""
    after, until = span
    number, first = _file_and_row(after)
    end = _file_and_row(until)[1] if until else 0     # 0 means to the end of the file
    row = 0
    for batch in _batches(inventory, storage, inventory.files[number]) if inventory.files else ():
        start, row = row, row + len(batch)
        if row <= first:
            continue
        batch = batch.slice(max(first - start, 0))
        if end and row >= end:
            batch, row = batch.slice(0, len(batch) - (row - end)), end
        position = f"{number:08}:{row:012}"
        rows, skipped = _select(inventory.bucket, batch, skips)
        yield Stretch((after, position), rows, len(batch), skipped)
        if position == until:
            return
        after = position
    yield Stretch((after, until), LISTING.empty_table(), 0, {})


def _file_and_row(position: str) -> tuple[int, int]:
    number, _, row = position.partition(":")
    return int(number or 0), int(row or 0)


def _batches(inventory: Inventory, storage: Storage, file: File) -> Iterator[pa.RecordBatch]:
    """The rows of a file, with the columns of _TYPES that it has. Raises InputError."""
    batches = _csv_batches if inventory.file_format == "CSV" else _parquet_batches
    try:
        with storage.open(file.key) as content:
            size = content.seek(0, io.SEEK_END)
            if file.size is not None and size != file.size:
                raise ValueError(f"it has {size:,} bytes, but {file.size:,} according to the manifest")
            content.seek(0)
            yield from batches(content, file.key, inventory.columns)
    except (OSError, EOFError, zlib.error, pa.ArrowException, ValueError) as error:   # EOFError: gzip, cut off
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(
            f"cannot read the inventory's file {storage.root}/{file.key}: {reason}; use another inventory, or list the "
            "bucket itself"
        ) from error


def _parquet_batches(file: BinaryIO, _key: str, _columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    parquet = pq.ParquetFile(file, buffer_size=_READ_BYTES)   # without a buffer each column is read whole
    names = {name: column for name, column in _PARQUET_COLUMNS.items() if column in parquet.schema_arrow.names}
    if "Key" not in names:
        raise ValueError(f"no column is named key, only {', '.join(parquet.schema_arrow.names)}")
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(names.values())):
        yield pa.RecordBatch.from_arrays(
            [batch[column].cast(_TYPES[name]) for name, column in names.items()], names=list(names)
        )


def _csv_batches(file: BinaryIO, key: str, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    present = [name for name in _TYPES if name in columns]
    lines = gzip.GzipFile(fileobj=file) if key.endswith(".gz") else file
    # Keys are encoded, so each record is one line. pyarrow's own stream of batches reads ahead in a thread, and the
    # process aborts if that thread runs when Python exits (pyarrow 26, Ctrl-C).
    while block := lines.read(_CSV_BLOCK_BYTES):
        table = pa.csv.read_csv(
            pa.BufferReader(block + lines.readline()),
            pa.csv.ReadOptions(column_names=columns, use_threads=False),
            convert_options=pa.csv.ConvertOptions(
                include_columns=present, column_types=_TYPES, null_values=[""], strings_can_be_null=True
            ),
        )
        # Encoded as in web forms, with "+" for a space: https://github.com/cloud-custodian/cloud-custodian/issues/1997
        keys = pa.array([unquote_plus(name) for name in table["Key"].to_pylist()], pa.string())
        yield from table.set_column(0, "Key", keys).combine_chunks().to_batches()


def _select(bucket: str, batch: pa.RecordBatch, skips: KeyRule) -> tuple[pa.Table, Counter[str]]:
    """The latest versions that are not skipped, as rows of schemas.LISTING; and how many were skipped, by reason."""
    skipped: Counter[str] = Counter()
    names = batch.schema.names
    if "IsLatest" in names:
        batch = _keep(batch, pc.fill_null(batch["IsLatest"], True), OLD_VERSION, skipped)
    if "IsDeleteMarker" in names:
        batch = _keep(batch, pc.invert(pc.fill_null(batch["IsDeleteMarker"], False)), DELETE_MARKER, skipped)
    keys = batch["Key"].to_pylist()
    sizes = batch["Size"].to_pylist() if "Size" in names else [None] * len(keys)
    reasons = list(map(skips, keys, sizes))
    skipped.update(filter(None, reasons))
    batch = batch.filter(pa.array([reason is None for reason in reasons], pa.bool_()))
    columns = {"uri": pc.binary_join_element_wise(f"s3://{bucket}/", batch["Key"], "")}
    if "Size" in names:
        columns["size"] = batch["Size"]
    if "ETag" in names:
        etags = pc.utf8_trim(batch["ETag"], '"')
        columns["etag"] = pc.if_else(pc.equal(etags, ""), None, etags)
    if "LastModifiedDate" in names:
        columns["mtime"] = batch["LastModifiedDate"]
    return listing_table(columns), skipped


def _keep(batch: pa.RecordBatch, wanted: pa.BooleanArray, reason: str, skipped: Counter[str]) -> pa.RecordBatch:
    """The wanted rows; the others are counted as skipped."""
    left = batch.filter(wanted)
    if len(left) < len(batch):
        skipped[reason] += len(batch) - len(left)
    return left
