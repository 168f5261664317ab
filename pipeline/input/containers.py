"""Images inside other files: members of tar archives (WebDataset shards) and rows of Parquet files.

A container is indexed once, while INPUT is listed: the members become to-do rows of their own, which are read later
without the rest. A member of a tar is the bytes at `offset`, `size` of them. A row of a Parquet file has its number
as `offset` and no size.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.input.names import InputError, extension, local_path, skip_reason
from pipeline.schemas import LISTING
from pipeline.storage.clients import open_bucket
from pipeline.storage.range_reader import RangeReader
from pipeline.storage.uris import StoreOptions, is_addressable, split_uri, uri_scheme

NOT_A_FILE_MEMBER = "links, devices and sparse files in tars"
OVERWRITTEN = "members of tars that a later one of the same name replaces"

MAX_HEADER_BYTES = 1 << 20     # of a tar: a name has a few hundred; without a limit a header may claim the whole file
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_READ_BUFFER_BYTES = 1 << 20
_STREAMED_ROWS = 8             # images of a Parquet file decompressed at a time


class ContainerError(Exception):
    """A file that is not the container it should be, or a damaged one."""


@dataclass(frozen=True, slots=True)
class ParquetColumns:
    """Where the images of Parquet files are.

    image: a column of bytes, or a struct with a field `bytes`, as Hugging Face's datasets have it; "a.b" is field b of
    column a. uri: a column that names the image within its file; None takes the row's number.
    """

    image: str
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """The images in one container. rows: a table of `schemas.LISTING`, in the order in which they lie there."""

    rows: pa.Table
    skipped: Counter[str] = field(default_factory=Counter)
    damage: str | None = None      # why there may be more than these


def is_container(name: str, columns: ParquetColumns | None) -> bool:
    """Whether a name is that of a tar, or of a Parquet file where their images are asked for."""
    kind = _kind(name)
    return kind == "tar" or (columns is not None and kind == "parquet")


def _kind(name: str) -> str:
    """The extension; of an http(s) URI the query does not count."""
    return extension(name.split("?")[0] if uri_scheme(name) in ("http", "https") else name)


def refuse_compressed(name: str) -> None:
    """Raises InputError for a compressed tar, whose members cannot be read on their own."""
    if name.lower().endswith(_COMPRESSED):
        raise InputError(f"{name}: members of a compressed tar cannot be read on their own; unpack it to a plain .tar")


def list_members(
    container: dict[str, Any], options: StoreOptions, columns: ParquetColumns | None, all_files: bool
) -> Members:
    """The images in a container, itself given as a row of `schemas.LISTING`. all_files: see `source.list_inputs`.

    What cannot be read at all is a damage too. Raises InputError where a column is missing.
    """
    uri = container["uri"]
    rows: dict[str, list[Any]] = {"member": [], "offset": [], "size": []}
    skipped: Counter[str] = Counter()
    damage = None
    try:
        with open_file(uri, options) as file:
            if _kind(uri) == "parquet" and columns is not None:
                rows = _parquet_rows(file, uri, columns)
            else:
                for name, offset, size in tar_members(file):
                    if offset is None:
                        skipped[NOT_A_FILE_MEMBER] += 1
                    elif reason := skip_reason(name, all_files):
                        skipped[reason] += 1
                    else:
                        for column, value in zip(rows.values(), (name, offset, size), strict=True):
                            column.append(value)
    except (ContainerError, OSError, pa.ArrowException, obstore.exceptions.BaseError) as error:
        damage = f"cannot read all of {uri}: {(str(error).splitlines() or [type(error).__name__])[0]}"
    last = {name: i for i, name in enumerate(rows["member"])}     # as unpacking it would leave it
    if len(last) < len(rows["member"]):
        skipped[OVERWRITTEN] = len(rows["member"]) - len(last)
    kept = sorted(last.values())
    n = len(kept)
    table = pa.table(
        {
            "uri": pa.array([f"{uri}#{rows['member'][i]}" for i in kept], pa.string()),
            "container": pa.repeat(pa.scalar(uri, pa.string()), n),
            "offset": pa.array([rows["offset"][i] for i in kept], pa.int64()),
            "size": pa.array([rows["size"][i] for i in kept], pa.int64()),
            "etag": pa.repeat(pa.scalar(container["etag"], pa.string()), n),
            "mtime": pa.repeat(pa.scalar(container["mtime"], LISTING.field("mtime").type), n),
        },
        schema=LISTING,
    )
    if damage:      # a row for what could not be listed: it fails, and is tried again by the next run
        lost = {**container, "container": uri, "offset": None, "size": None}
        table = pa.concat_tables([table, pa.Table.from_pylist([lost], schema=LISTING)])
    return Members(table, skipped, damage)


def tar_members(file: BinaryIO) -> Iterator[tuple[str, int | None, int]]:
    """Name, offset and size in bytes of every member that is not a folder; the offset is None for what is not a file.

    Nothing is unpacked, so where a name points to does no harm. Raises ContainerError for what is no tar, at a header
    that makes no sense, and where the file ends before a member does; what stood before has been given by then.
    """
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        # Not our own reading of headers: names come in four dialects.
        with tarfile.open(fileobj=_HeaderReader(file), mode="r:", errors="surrogateescape") as tar:
            place = -1
            while (member := tar.next()) is not None:
                tar.members = []                        # else it keeps them all
                # A size below 0 can make tarfile read the same header for ever.
                if member.size < 0 or member.offset_data <= place or member.offset_data + member.size > total:
                    raise ContainerError(f"a member of {member.size:,} bytes at {member.offset_data:,} of {total:,}")
                place = member.offset_data
                if not member.isdir():
                    plain = member.isreg() and not member.issparse()
                    yield _text(member.name), member.offset_data if plain else None, member.size
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):       # tarfile takes a header that makes no sense for the end
                raise ContainerError(f"no header of a member at byte {tar.offset:,} of {total:,}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise ContainerError(f"not a tar, or a damaged one ({error})") from error


class _HeaderReader:
    """The part of a file object that tarfile uses, for headers only."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ContainerError(f"a header of {size:,} bytes at {self._file.tell():,}")
        return self._file.read(size)


def _text(name: str) -> str:
    """A member's name; bytes that are not UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _parquet_rows(file: BinaryIO, uri: str, columns: ParquetColumns) -> dict[str, list[Any]]:
    with pq.ParquetFile(file) as parquet:
        _bytes_column(parquet.schema_arrow, columns.image, uri)
        n = parquet.metadata.num_rows
        names: list[Any] = list(range(n))
        if columns.uri is not None:
            _field(parquet.schema_arrow, columns.uri, uri)
            names = _leaf(parquet.read(columns=[columns.uri]), columns.uri).to_pylist()
    # A row without a name gets its number, one whose name was there already both: every row is an image of its own.
    members: dict[str, None] = {}
    for i, name in enumerate(names):
        member = str(i if name is None else name)
        while member in members:
            member += f"~{i}"
        members[member] = None
    return {"member": list(members), "offset": list(range(n)), "size": [None] * n}


class ParquetImages:
    """Reads images out of Parquet files, best in the order of their rows: then each row group is read once."""

    def __init__(self, column: str, options: StoreOptions) -> None:
        self._column = column
        self._options = options
        self._container: str | None = None
        self._parquet: pq.ParquetFile | None = None
        self._images: Iterator[bytes | None] = iter(())
        self._next_row = self._end_row = 0

    def read(self, container: str, row: int) -> bytes:
        """The bytes in that row, empty for null. Raises what reading may raise, and InputError for a wrong column."""
        try:
            if container != self._container:
                self._open(container)
            if not self._next_row <= row < self._end_row:
                self._start_row_group(row)
            content = None
            while self._next_row <= row:
                content = next(self._images)
                self._next_row += 1
        except BaseException:
            self.close()
            raise
        return content or b""

    def close(self) -> None:
        """Let go of the file."""
        self._container, self._images, self._next_row, self._end_row = None, iter(()), 0, 0
        if self._parquet is not None:
            self._parquet.close(force=True)
            self._parquet = None

    def _open(self, container: str) -> None:
        self.close()
        # Without pre_buffer and with a small buffer the pages of a row group are read as they are needed.
        self._parquet = pq.ParquetFile(
            open_file(container, self._options), pre_buffer=False, buffer_size=_READ_BUFFER_BYTES
        )
        self._container = container

    def _start_row_group(self, row: int) -> None:
        assert self._parquet is not None and self._container is not None
        column = _bytes_column(self._parquet.schema_arrow, self._column, self._container)
        first = 0
        for group in range(self._parquet.num_row_groups):
            end = first + self._parquet.metadata.row_group(group).num_rows
            if row < end:
                batches = self._parquet.iter_batches(_STREAMED_ROWS, row_groups=[group], columns=[column])
                self._images = (
                    value.as_py() for batch in batches for value in _leaf(pa.table(batch), column)
                )
                self._next_row, self._end_row = first, end
                return
            first = end
        raise ContainerError(f"the file ends before row {row:,}")


def _bytes_column(schema: pa.Schema, name: str, uri: str) -> str:
    """The name down to the bytes. Raises InputError when there are none."""
    found = _field(schema, name, uri).type
    if pa.types.is_struct(found) and found.get_field_index("bytes") >= 0:
        name, found = f"{name}.bytes", found.field("bytes").type
    if not (pa.types.is_binary(found) or pa.types.is_large_binary(found)):
        raise InputError(f"column {name} of {uri} holds {found}, not the bytes of images; --image-column names it")
    return name


def _field(schema: pa.Schema, name: str, uri: str) -> pa.Field:
    """The field of that dotted name. Raises InputError."""
    container: pa.Schema | pa.DataType = schema
    found = None
    for part in name.split("."):
        index = container.get_field_index(part) if hasattr(container, "get_field_index") else -1
        if index < 0:
            raise InputError(
                f"{uri} has no column {name}, only {', '.join(schema.names)}; --image-column and --uri-column name them"
            )
        found = container.field(index)
        container = found.type
    assert found is not None
    return found


def _leaf(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column of that dotted name, of a table that holds only it."""
    column = table.column(0)
    for part in name.split(".")[1:]:
        column = pc.struct_field(column, part)
    return column


def open_file(uri: str, options: StoreOptions) -> BinaryIO:
    """A file or an object for reading in pieces, seekable. Raises OSError and what obstore raises."""
    if uri_scheme(uri) in (None, "file"):
        return open(local_path(uri) if uri_scheme(uri) else uri, "rb")   # noqa: PTH123  (the caller closes it)
    bucket_uri, key = split_uri(uri)
    if uri_scheme(uri) in ("s3", "gs") and not is_addressable(key):
        raise OSError(f"a key that the client cannot address: {key!r}")
    store = open_bucket(bucket_uri, options)
    if uri_scheme(uri) in ("http", "https"):      # a signed address may allow GET alone
        size = obstore.get(store, key, options={"range": (0, 1)}).meta["size"]
    else:
        size = obstore.head(store, key)["size"]

    def read_range(start: int, end: int) -> bytes:
        return bytes(obstore.get_range(store, key, start=start, end=end))

    return RangeReader.buffered(read_range, size)
