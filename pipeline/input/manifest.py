"""Read a list of images, piece by piece: a Parquet, CSV or text file, or a folder of Parquet files."""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, BinaryIO

import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.input.manifest_folder import check_complete
from pipeline.input.names import InputError, extension, uri_extension
from pipeline.input.parquet_images import image_columns, missing_image_column
from pipeline.schemas import LISTING
from pipeline.storage import open_storage, web
from pipeline.storage.files import open_file
from pipeline.storage.uris import (
    REMOTE_SCHEMES,
    StoreOptions,
    UriError,
    absolute,
    is_http,
    is_local,
    local_path,
    local_uri,
    split_uri,
    unsupported,
    uri_scheme,
)

MANIFEST_EXTENSIONS = frozenset({"parquet", "csv", "txt"})

MAX_WEB_BYTES = 4 << 30      # of a manifest on a web server, which is held in memory

_TEXT_LINES = 100_000
_CSV_BLOCK_BYTES = 8 << 20
_PARQUET_ROWS = 65_536
_PARQUET_READ_BYTES = 1 << 20

# URIs that already have the form of a listing. All others are converted one by one, which is slower.
_PLAIN_REMOTE = rf"^(?:{'|'.join(REMOTE_SCHEMES)})://[^/@]+(?:/|$)"
_PLAIN_LOCAL = r"^/[^/]"
_NOT_NORMAL = r"//|/\.{1,2}(?:/|$)|/$"


def is_manifest(path: str) -> bool:
    """Whether this is the name of a manifest file."""
    return uri_extension(path) in MANIFEST_EXTENSIONS


def is_manifest_folder(path: str) -> bool:
    """Whether this is the name of a folder of Parquet files, as `jobs.manifest` and Spark write them."""
    return extension(path) == "parquet"


def read_manifest(path: str, options: StoreOptions) -> Generator[tuple[pa.Table, int], None, None]:
    """A manifest's rows as tables of `schemas.LISTING`, each with the number of further rows that have no uri.

    `.parquet` and `.csv` have a column `uri` and may have the others of `LISTING`; `.csv` and `.txt` may instead have
    one URI a line. Relative paths start at the manifest's folder. Entries get the same uri as in a listing.
    Raises InputError for a file that is no manifest, and for the first entry that can never be read.
    """
    path = local_path(path)
    with closing(_tables(path, options)) as tables:
        yield from _as_listing(path, posixpath.dirname(path), tables)


def read_manifest_folder(folder: str, options: StoreOptions) -> Generator[tuple[pa.Table, int], None, None]:
    """The same for a folder of Parquet files, in the order of their names.

    Raises InputError also if `jobs.manifest` has not finished it.
    """
    storage = open_storage(folder, options)
    check_complete(storage)
    for file in storage.list(""):
        if extension(file.path) == "parquet":
            yield from read_manifest(f"{storage.root}/{file.path}", options)


def _as_listing(path: str, folder: str, tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, int]]:
    """The tables with the types and uris of a listing."""
    first_row = 1
    iterator = iter(tables)
    while True:
        try:
            table = next(iterator, None)
            columns = None if table is None else {name: _column(table, name) for name in LISTING.names}
        except (pa.ArrowException, OSError, ValueError, obstore.exceptions.BaseError) as error:
            raise InputError(f"cannot read the manifest {path}: {str(error).splitlines()[0]}") from error
        if table is None or columns is None:
            return
        columns |= _normal_uris(path, folder, columns["uri"], columns["container"], first_row)
        first_row += len(table)
        named = pa.table(columns).filter(columns["uri"].is_valid())
        yield named.cast(LISTING), columns["uri"].null_count


def _normal_uris(
    path: str, folder: str, uris: pa.ChunkedArray, containers: pa.ChunkedArray, first_row: int
) -> dict[str, pa.Array]:
    """The columns uri and container as in a listing; null for a row without a uri."""
    odd = pc.invert(pc.and_(_is_plain(uris), pc.or_kleene(pc.is_null(containers), _is_plain(containers))))
    rows = pc.indices_nonzero(pc.fill_null(odd, True)).to_pylist()
    if not rows:
        return {"uri": uris, "container": containers}
    uri_values, container_values = uris.to_pylist(), containers.to_pylist()
    for i in rows:
        uri, container = uri_values[i], container_values[i]
        try:
            if not uri:
                uri_values[i] = None
            elif container:
                container_values[i] = _normal_uri(container, folder)
                uri_values[i] = container_values[i] + uri.removeprefix(container)
            else:
                uri_values[i] = _normal_uri(uri, folder)
        except (InputError, UriError) as error:
            raise InputError(f"row {first_row + i} of the manifest {path}: {error}") from None
    return {"uri": pa.array(uri_values, pa.string()), "container": pa.array(container_values, pa.string())}


def _is_plain(names: pa.ChunkedArray) -> pa.ChunkedArray:
    local = pc.and_(
        pc.match_substring_regex(names, _PLAIN_LOCAL), pc.invert(pc.match_substring_regex(names, _NOT_NORMAL))
    )
    return pc.or_(local, pc.match_substring_regex(names, _PLAIN_REMOTE))


def _tables(path: str, options: StoreOptions) -> Generator[pa.Table, None, None]:
    """Tables with a column `uri` and with no columns other than those of `LISTING`."""
    with _open(path, options) as file:
        kind = uri_extension(path)
        if kind == "parquet":
            yield from _parse_parquet(file, path)
        elif kind == "csv":
            yield from _parse_csv(file, ",")
        else:
            yield from _parse_txt(file, posixpath.dirname(path))


def _open(path: str, options: StoreOptions) -> BinaryIO:
    if not is_http(path):
        return open_file(path, options)
    return io.BytesIO(web.read_whole(path, MAX_WEB_BYTES))       # a web server may not support ranges


def _parse_parquet(file: BinaryIO, path: str) -> Iterator[pa.Table]:
    # With pre_buffer or without buffer_size a whole row group is held. A single one may have ten million rows.
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_READ_BYTES) as parquet:
        present = parquet.schema_arrow.names
        if "uri" not in present and (images := image_columns(parquet.schema_arrow)):
            raise InputError(missing_image_column(path, images))
        _check_uri(present)
        columns = [name for name in LISTING.names if name in present]
        for group in range(parquet.num_row_groups):     # of several groups iter_batches keeps more than one
            for batch in parquet.iter_batches(_PARQUET_ROWS, [group], columns, use_threads=False):
                batch.validate(full=True)      # a string may not be UTF-8
                yield pa.table(batch)


def _parse_csv(file: BinaryIO, delimiter: str) -> Iterator[pa.Table]:
    file.seek(0)
    if not file.read(_CSV_BLOCK_BYTES).strip():
        return

    def parse(include: list[str] | None, **read: Any) -> pa.csv.CSVStreamingReader:
        file.seek(0)
        return pa.csv.open_csv(
            _Unclosed(file),
            read_options=pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES, **read),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in LISTING.names}, null_values=[""],
                strings_can_be_null=True, quoted_strings_can_be_null=True, include_columns=include or [],
            ),
        )

    with parse(None) as reader:
        present = reader.schema.names
    names: dict[str, Any] = {}
    if "uri" not in present and len(present) == 1:
        present = names["column_names"] = ["uri"]
    _check_uri(present)
    with parse([name for name in LISTING.names if name in present], **names) as reader:
        for batch in reader:
            yield pa.table(batch)


class _Unclosed(io.RawIOBase):
    """A file for a reader that would otherwise close it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _parse_txt(file: BinaryIO, folder: str) -> Iterator[pa.Table]:
    def line_uri(name: str) -> str:
        """The line as it is, with spaces, quotes and commas; one that is not UTF-8 as a file:// URI."""
        uri = local_uri(name)
        if uri == name or uri_scheme(name) is not None or uri_scheme(folder) is not None:
            return uri
        return local_uri(posixpath.join(folder, name))

    header = os.fsdecode(file.readline().removeprefix(b"\xef\xbb\xbf")).rstrip("\r\n")
    for delimiter in "\t,":
        if delimiter in header and "uri" in header.split(delimiter):
            yield from _parse_csv(file, delimiter)
            return
    names = [] if header in ("uri", "") else [line_uri(header)]
    for line in file:
        name = os.fsdecode(line).rstrip("\n").rstrip("\r")
        if name:
            names.append(line_uri(name))
        if len(names) >= _TEXT_LINES:
            yield pa.table({"uri": pa.array(names, pa.string())})
            names = []
    yield pa.table({"uri": pa.array(names, pa.string())})


def _check_uri(columns: list[str]) -> None:
    if "uri" not in columns:
        raise ValueError(f"no column is named uri, only {', '.join(columns)}; name it uri, or write one URI a line")


def _column(table: pa.Table, name: str) -> pa.ChunkedArray | pa.Array:
    wanted = LISTING.field(name).type
    if name not in table.column_names:
        return pa.nulls(len(table), wanted)
    column = table[name]
    try:
        return column.cast(wanted, safe=name != "mtime")   # cut nanoseconds off
    except pa.ArrowInvalid:
        if name != "mtime":
            raise
        return column.cast(pa.timestamp("us")).cast(wanted)   # text without a time zone is UTC


def _normal_uri(entry: str, folder: str) -> str:
    """The uri that a listing would give to a manifest's entry."""
    scheme = uri_scheme(entry)
    if scheme in REMOTE_SCHEMES:
        check_remote(entry)
        return entry
    if not is_local(entry):
        raise InputError(unsupported(entry))
    path = local_path(entry)
    if path.startswith("/") or is_local(folder):
        return local_uri(absolute(posixpath.join(folder, path)))
    bucket_uri, key_folder = split_uri(folder)
    return bucket_uri + posixpath.normpath(posixpath.join("/", key_folder, entry))


def check_remote(uri: str) -> None:
    """Raises InputError for a URI without a bucket or host, and for one with credentials."""
    host = uri.split("://", 1)[1].partition("/")[0]
    if not host:
        raise InputError(f"no bucket or host in {uri!r}: write s3://bucket/key, gs://bucket/key or https://host/path")
    if "@" in host:
        raise InputError("credentials in a URI end up in the output: remove them and set them in the environment")
