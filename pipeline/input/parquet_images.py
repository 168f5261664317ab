"""Parquet files that hold images: a row is an image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import obstore
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.batch import Status
from pipeline.input.members import ContainerError, Damage, Elsewhere, MemberError, too_large
from pipeline.input.names import InputError
from pipeline.storage.files import open_file
from pipeline.storage.uris import StoreOptions

_READ_BUFFER_BYTES = 4 << 20
_STREAMED_ROWS = 8             # images that are decompressed at a time
_NAME_ROWS = 65_536
_MAX_NAME_BYTES = 4096
_BYTES, _PATH = "bytes", "path"      # the fields of an image in Hugging Face's data sets


@dataclass(frozen=True, slots=True)
class ParquetColumns:
    """The columns of Parquet files that hold images.

    image: a column of bytes, of structs with a field `bytes`, as in Hugging Face's datasets, or of lists of one of
    these; "a.b" is the column of that name, else field b of column a. uri: a column that names the image within its
    file; None takes the row's number.
    """

    image: str
    uri: str | None = None


class _Field(NamedTuple):
    """A field of a schema. parts: the name of its column, and of the fields inside that."""

    parts: tuple[str, ...]
    type: pa.DataType


def image_columns(schema: pa.Schema | pa.StructType) -> list[str]:
    """The names of the columns that could hold images, by their types."""
    found = []
    for field in schema:
        if _holds_bytes(field.type) and not pa.types.is_null(field.type):
            found.append(field.name)
        elif pa.types.is_struct(field.type):
            found += [f"{field.name}.{inner}" for inner in image_columns(field.type)]
    return found


def name_image_column(uri: str, options: StoreOptions) -> str:
    """The message about a Parquet file that was given without --image-column."""
    try:
        with open_file(uri, options) as file, pq.ParquetFile(file) as parquet:
            names = image_columns(parquet.schema_arrow)
    except (OSError, pa.ArrowException, obstore.exceptions.BaseError):
        names = []
    return missing_image_column(uri, names)


def missing_image_column(uri: str, names: Sequence[str]) -> str:
    """The same for a file with these columns that could hold images."""
    could_be = f"; here it could be {' or '.join(names)}" if names else ""
    return f"{uri} is a Parquet file: --image-column names the column that holds its images{could_be}"


def row_names(file: BinaryIO, uri: str, columns: ParquetColumns) -> tuple[list[str], int]:
    """A distinct name for each row, and how many of them needed the row's number because their name was taken.

    Raises InputError for a wrong column.
    """
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BUFFER_BYTES) as parquet:
        _image_field(parquet.schema_arrow, columns.image, uri)
        names: Sequence[str | None] = [None] * parquet.metadata.num_rows
        if columns.uri is not None:
            names = _names(parquet, columns.uri, uri)
    # Every row is an image of its own: one without a name gets its number, one whose name is taken gets both.
    distinct: dict[str, None] = {}
    n_taken = 0
    for i, name in enumerate(names):
        member = str(i) if name is None else name
        n_taken += member in distinct
        while member in distinct:
            member += f"~{i}"
        distinct[member] = None
    return list(distinct), n_taken


def _names(parquet: pq.ParquetFile, name: str, uri: str) -> list[str | None]:
    column = _field(parquet.schema_arrow, name, uri)
    if pa.types.is_nested(column.type):
        raise InputError(f"column {name} of {uri} holds {column.type}, not names: check --uri-column")
    found: list[str | None] = []
    for group in range(parquet.num_row_groups):
        for batch in parquet.iter_batches(_NAME_ROWS, [group], [".".join(column.parts)], use_threads=False):
            batch.validate(full=True)          # a string may not be UTF-8
            values = batch.column(column.parts[0]).to_pylist()
            found += [_name(_inner(value, column.parts[1:]), name, uri) for value in values]
    return found


def _name(value: Any, column: str, uri: str) -> str | None:
    if isinstance(value, bytes):
        if len(value) > _MAX_NAME_BYTES:
            raise InputError(f"column {column} of {uri} holds {len(value):,} bytes, not a name: check --uri-column")
        return value.decode("utf-8", "backslashreplace")
    return None if value is None else str(value)


class ParquetImages:
    """Reads the images of a Parquet file. In the order of the rows each row group is decompressed only once.

    Raises InputError for a wrong column.
    """

    def __init__(self, file: BinaryIO, uri: str, column: str, max_bytes: int) -> None:
        # Without pre_buffer and with a small buffer only the pages needed next are read, not a whole row group.
        self._parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BUFFER_BYTES)
        self._column = _image_field(self._parquet.schema_arrow, column, uri)
        self._max_bytes = max_bytes
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._images: pa.Array = pa.array([])
        self._first_row = self._end_row = 0          # of self._images, and of the row group
        self._damage: defaultdict[int, Damage] = defaultdict(Damage)    # of the row group that ends at that row

    def read(self, offset: int) -> bytes | Elsewhere:
        """The image of that row; no bytes for null. Raises MemberError, ContainerError, and any error of reading."""
        if not self._first_row <= offset < self._end_row:
            self._start_row_group(offset)
        self._damage[self._end_row].check(offset)
        try:
            self._go_on_to(offset)
        except Exception as error:
            if isinstance(error, pa.ArrowException | StopIteration) or type(error) is OSError:   # not one of the store
                self._damage[self._end_row].note(offset, error)
            self._end_row = 0          # the row group is started again
            raise
        value = _inner(self._images[offset - self._first_row].as_py(), self._column.parts[1:])
        image = _image(value)
        if isinstance(image, bytes) and len(image) > self._max_bytes:
            raise too_large(self._max_bytes)
        return image

    def _go_on_to(self, row: int) -> None:
        while row >= self._first_row + len(self._images):
            self._first_row += len(self._images)
            self._images = next(self._batches).column(self._column.parts[0])

    def close(self) -> None:
        self._parquet.close(force=True)

    def _start_row_group(self, row: int) -> None:
        first = 0
        for group in range(self._parquet.num_row_groups):
            end = first + self._parquet.metadata.row_group(group).num_rows
            if row < end:
                self._batches = self._parquet.iter_batches(_STREAMED_ROWS, [group], _leaves(self._column))
                self._images = pa.array([])
                self._first_row, self._end_row = first, end
                return
            first = end
        raise ContainerError(f"the file ends before row {row:,}")


def _image(value: Any) -> bytes | Elsewhere:
    """The image in the value of a row."""
    if isinstance(value, list):
        if len(value) > 1:
            raise MemberError("a list of several images: only a list of one can be read", Status.UNSUPPORTED)
        value = value[0] if value else None
    if isinstance(value, dict):
        if value.get(_BYTES) is None and value.get(_PATH):
            return Elsewhere(str(value[_PATH]))
        value = value.get(_BYTES)
    return value or b""


def _image_field(schema: pa.Schema, name: str, uri: str) -> _Field:
    """The column of images. Raises InputError if it holds something else."""
    found = _field(schema, name, uri)
    if not _holds_bytes(found.type):
        raise InputError(
            f"column {name} of {uri} holds {found.type}, not the bytes of images: check --image-column"
            f"{_could_be(schema)}"
        )
    return found


def _could_be(schema: pa.Schema) -> str:
    names = image_columns(schema)
    return f" (the images could be in {', '.join(names)})" if names else ""


def _holds_bytes(kind: pa.DataType, *, inside: bool = False) -> bool:
    """Whether values of the type are bytes, structs with bytes, or lists of these. inside: of a list, of a struct."""
    kind = _plain_type(kind)
    if _is_bytes(kind):
        return True
    if pa.types.is_struct(kind):
        at = kind.get_field_index(_BYTES)
        return at >= 0 and _is_bytes(_plain_type(kind.field(at).type))
    return not inside and _is_list(kind) and _holds_bytes(kind.value_type, inside=True)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    while isinstance(kind, pa.BaseExtensionType | pa.DictionaryType):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether values of the type are bytes; also the type of a column that holds nothing but nulls."""
    checks = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null
    return any(is_one(kind) for is_one in checks)


def _is_list(kind: pa.DataType) -> bool:
    return isinstance(
        kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType | pa.ListViewType | pa.LargeListViewType
    )


def _field(schema: pa.Schema, name: str, uri: str) -> _Field:
    """The field with that name, in which dots may be part of a name or come between names. Raises InputError."""
    found = _search(schema, name, ())
    if found is None:
        raise InputError(
            f"{uri} has no column {name}, only {', '.join(schema.names)}: check --image-column and --uri-column"
            f"{_could_be(schema)}"
        )
    return found


def _search(container: pa.Schema | pa.DataType, name: str, above: tuple[str, ...]) -> _Field | None:
    """The field below a schema or a struct; the longest first part of the name is tried first."""
    if not isinstance(container, pa.Schema | pa.StructType):
        return None
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        at = container.get_field_index(first := ".".join(parts[:n]))
        if at < 0:
            continue
        field = container.field(at)
        if n == len(parts):
            return _Field((*above, first), field.type)
        if found := _search(field.type, ".".join(parts[n:]), (*above, first)):
            return found
    return None


def _leaves(column: _Field) -> list[str]:
    """What to read of the column, in Parquet's dotted names."""
    name = ".".join(column.parts)
    if not pa.types.is_struct(column.type):
        return [name]
    return [f"{name}.{each}" for each in (_BYTES, _PATH) if column.type.get_field_index(each) >= 0]


def _inner(value: Any, names: Sequence[str]) -> Any:
    """The value inside nested structs; None if one of them is null."""
    for name in names:
        value = None if value is None else value[name]
    return value
