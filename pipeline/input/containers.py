"""Images inside other files: members of tars (WebDataset shards) and rows of Parquet files.

A container is indexed once, when INPUT is listed. Each member becomes a row of the to-do and is later read without
the rest: a member of a tar as `size` bytes at `offset`, a row of a Parquet file by its number, which is in `offset`;
its `size` is null.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.input.names import InputError, uri_extension
from pipeline.input.rows import listing_table
from pipeline.schemas import LISTING
from pipeline.storage.files import open_file
from pipeline.storage.uris import StoreOptions

NOT_A_FILE_MEMBER = "links, devices and sparse files in tars"
OVERWRITTEN = "members of tars replaced by a later one of the same name"

MAX_HEADER_BYTES = 1 << 20     # of a tar: a name needs a few hundred; without a limit a header may claim the whole file
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_READ_BUFFER_BYTES = 1 << 20
_STREAMED_ROWS = 8             # images of a Parquet file that are decompressed at a time


NameRule = Callable[[str], str | None]   # of a member's name: why it is skipped; None if it is not


class ContainerError(Exception):
    """The file is damaged, or is no container of its kind."""


@dataclass(frozen=True, slots=True)
class ParquetColumns:
    """The columns of Parquet files that hold images.

    image: a column of bytes, or a struct with a field `bytes`, as in Hugging Face's datasets; "a.b" is field b of
    column a. uri: a column that names the image within its file; None takes the row's number.
    """

    image: str
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """The images in one container."""

    rows: pa.Table                 # of schemas.LISTING, in the container's order
    skipped: Counter[str] = field(default_factory=Counter)
    damage: str | None = None      # why members may be missing


@dataclass(frozen=True, slots=True)
class _Index:
    """Where the members of a container are."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int | None] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def is_container(name: str, columns: ParquetColumns | None) -> bool:
    """Whether this is the name of a tar, or of a Parquet file if `columns` says where their images are."""
    kind = uri_extension(name)
    return kind == "tar" or (columns is not None and kind == "parquet")


def refuse_compressed(name: str) -> None:
    """Raises InputError for a compressed tar: its members cannot be read one by one."""
    if name.lower().endswith(_COMPRESSED):
        raise InputError(f"{name}: members of a compressed tar cannot be read one by one; unpack it to a plain .tar")


def list_members(
    container: dict[str, Any], options: StoreOptions, columns: ParquetColumns | None, skips: NameRule
) -> Members:
    """The images in a container. skips: of the members of a tar; every row of a Parquet file is an image.

    container: its row of `schemas.LISTING`. If a part of it cannot be read, the result has the images before that part,
    the damage, and a row for the container itself; that row fails, and the next run tries it again.
    Raises InputError if a column is missing.
    """
    uri = container["uri"]
    index, damage = _Index(), None
    try:
        with open_file(uri, options) as file:
            if columns is not None and uri_extension(uri) == "parquet":
                _index_parquet(file, uri, columns, index)
            else:
                _index_tar(file, skips, index)
    except (ContainerError, OSError, pa.ArrowException, obstore.exceptions.BaseError) as error:
        damage = f"cannot read all of {uri}: {(str(error).splitlines() or [type(error).__name__])[0]}"
    table = _member_rows(container, index)
    if damage:
        lost = {**container, "container": uri, "offset": None, "size": None}
        table = pa.concat_tables([table, pa.Table.from_pylist([lost], schema=LISTING)])
    return Members(table, index.skipped, damage)


def _member_rows(container: dict[str, Any], index: _Index) -> pa.Table:
    """A row for each name in the index. Of members with the same name the last counts, as when a tar is unpacked."""
    uri = container["uri"]
    last = {name: i for i, name in enumerate(index.names)}
    if len(last) < len(index.names):
        index.skipped[OVERWRITTEN] = len(index.names) - len(last)
    kept = sorted(last.values())
    return listing_table({
        "uri": [f"{uri}#{index.names[i]}" for i in kept],
        "container": [uri] * len(kept),
        "offset": [index.offsets[i] for i in kept],
        "size": [index.sizes[i] for i in kept],
        "etag": [container["etag"]] * len(kept),
        "mtime": [container["mtime"]] * len(kept),
    })


def _index_tar(file: BinaryIO, skips: NameRule, index: _Index) -> None:
    for name, offset, size in tar_members(file):
        if offset is None:
            index.skipped[NOT_A_FILE_MEMBER] += 1
        elif reason := skips(name):
            index.skipped[reason] += 1
        else:
            index.names.append(name)
            index.offsets.append(offset)
            index.sizes.append(size)


def tar_members(file: BinaryIO) -> Iterator[tuple[str, int | None, int]]:
    """Name, offset and size in bytes of every member that is not a folder; the offset is None if it is no plain file.

    Nothing is unpacked, so a name that points elsewhere does no harm. Yields the members before a damage, then raises
    ContainerError: for a file that is no tar, for a header that makes no sense, for a member that the file cuts off.
    """
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        # tarfile reads the headers, since names come in four dialects.
        with tarfile.open(fileobj=cast(BinaryIO, _HeaderReader(file)), mode="r:", errors="surrogateescape") as tar:
            place = -1
            while (member := tar.next()) is not None:
                cast(Any, tar).members = []             # tarfile would keep them all
                # With a size below 0 tarfile may read the same header for ever.
                if member.size < 0 or member.offset_data <= place or member.offset_data + member.size > total:
                    raise ContainerError(f"a member of {member.size:,} bytes at {member.offset_data:,} of {total:,}")
                place = member.offset_data
                if not member.isdir():
                    plain = member.isreg() and not member.issparse()
                    yield _text(member.name), member.offset_data if plain else None, member.size
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):       # tarfile ends at a header that makes no sense
                raise ContainerError(f"no header of a member at byte {tar.offset:,} of {total:,}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise ContainerError(f"not a tar, or a damaged one ({error})") from error


class _HeaderReader:
    """The part of a file's interface that tarfile uses, limited to the size of headers."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ContainerError(f"a header of {size:,} bytes at {self._file.tell():,}")
        return self._file.read(size)


def _text(name: str) -> str:
    """A member's name; bytes that are not UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _index_parquet(file: BinaryIO, uri: str, columns: ParquetColumns, index: _Index) -> None:
    with pq.ParquetFile(file) as parquet:
        _bytes_column(parquet.schema_arrow, columns.image, uri)
        n_rows = parquet.metadata.num_rows
        names: Sequence[Any] = range(n_rows)
        if columns.uri is not None:
            _field(parquet.schema_arrow, columns.uri, uri)
            names = _leaf(parquet.read(columns=[columns.uri]), columns.uri).to_pylist()
    # Every row is an image of its own: one without a name gets its number, one whose name is taken gets both.
    members: dict[str, None] = {}
    for i, name in enumerate(names):
        member = str(i if name is None else name)
        while member in members:
            member += f"~{i}"
        members[member] = None
    index.names.extend(members)
    index.offsets.extend(range(n_rows))
    index.sizes.extend([None] * n_rows)


class ParquetImages:
    """Reads images from Parquet files. In the order of their rows each row group is read only once."""

    def __init__(self, column: str, options: StoreOptions) -> None:
        self._column = column
        self._options = options
        self._container: str | None = None
        self._parquet: pq.ParquetFile | None = None
        self._images: Iterator[bytes | None] = iter(())
        self._next_row = self._end_row = 0

    def read(self, container: str, row: int) -> bytes:
        """The bytes in that row; empty for null. Raises InputError for a wrong column, and any error of reading."""
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
        """Close the file."""
        self._container, self._images, self._next_row, self._end_row = None, iter(()), 0, 0
        if self._parquet is not None:
            self._parquet.close(force=True)
            self._parquet = None

    def _open(self, container: str) -> None:
        self.close()
        # Without pre_buffer and with a small buffer only the pages needed next are read, not a whole row group.
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
                self._images = (value.as_py() for batch in batches for value in _leaf(pa.table(batch), column))
                self._next_row, self._end_row = first, end
                return
            first = end
        raise ContainerError(f"the file ends before row {row:,}")


def _bytes_column(schema: pa.Schema, name: str, uri: str) -> str:
    """The dotted name of the bytes themselves. Raises InputError if the column has none."""
    found = _field(schema, name, uri).type
    if pa.types.is_struct(found) and found.get_field_index("bytes") >= 0:
        name, found = f"{name}.bytes", found.field("bytes").type
    if not (pa.types.is_binary(found) or pa.types.is_large_binary(found)):
        raise InputError(f"column {name} of {uri} holds {found}, not the bytes of images: check --image-column")
    return name


def _field(schema: pa.Schema, name: str, uri: str) -> pa.Field:
    """The field with that dotted name. Raises InputError."""
    container: pa.Schema | pa.DataType = schema
    found = None
    for part in name.split("."):
        index = container.get_field_index(part) if hasattr(container, "get_field_index") else -1
        if index < 0:
            raise InputError(
                f"{uri} has no column {name}, only {', '.join(schema.names)}: check --image-column and --uri-column"
            )
        found = container.field(index)
        container = found.type
    assert found is not None
    return found


def _leaf(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The values of the dotted name in a table that has only this column."""
    column = table.column(0)
    for part in name.split(".")[1:]:
        column = pc.struct_field(column, part)
    return column
