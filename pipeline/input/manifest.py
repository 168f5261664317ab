"""A list of images to read, as a Parquet, CSV or text file, or as a folder of Parquet files; read piece by piece."""

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

from pipeline.input.containers import open_file
from pipeline.input.manifest_folder import check_complete
from pipeline.input.names import InputError, absolute, extension, local_path, local_uri
from pipeline.schemas import LISTING
from pipeline.storage import open_storage
from pipeline.storage.clients import open_bucket
from pipeline.storage.uris import REMOTE_SCHEMES, StoreOptions, split_uri, uri_scheme

MANIFEST_EXTENSIONS = frozenset({"parquet", "csv", "txt"})

_TEXT_LINES = 100_000
_CSV_BLOCK_BYTES = 8 << 20

# Names that are in the form a listing gives them; the others take the slow way, one by one.
_PLAIN_REMOTE = rf"^(?:{'|'.join(REMOTE_SCHEMES)})://[^/@]+(?:/|$)"
_PLAIN_LOCAL = r"^/[^/]"
_NOT_NORMAL = r"//|/\.{1,2}(?:/|$)|/$"


def is_manifest(path: str) -> bool:
    """Whether the name is a manifest's; of an http(s) URI the query does not count."""
    return extension(path.split("?")[0] if uri_scheme(path) in ("http", "https") else path) in MANIFEST_EXTENSIONS


def is_manifest_folder(path: str) -> bool:
    """Whether the name is that of a folder of Parquet files, as `jobs.manifest` and Spark write them."""
    return extension(path) == "parquet"


def read_manifest(path: str, options: StoreOptions) -> Generator[tuple[pa.Table, int], None, None]:
    """A manifest's rows as tables of `schemas.LISTING`, each with how many more rows there had no uri.

    `.parquet` and `.csv` have a column `uri` and may have the others of `LISTING`; `.csv` and `.txt` may as well have
    one URI a line. Relative paths start at the manifest's own folder. Entries get the names that a listing gives.
    Raises InputError for a file that is not such a thing, and for the first entry that can never be read.
    """
    with closing(_tables(path, options)) as tables:
        yield from _normal(path, path.rpartition("/")[0], tables)


def read_manifest_folder(folder: str, options: StoreOptions) -> Generator[tuple[pa.Table, int], None, None]:
    """The same for a folder of Parquet files, as `jobs.manifest` and others write them; in the order of their names.

    Raises InputError also where `jobs.manifest` has not come to its end.
    """
    storage = open_storage(folder, options)
    check_complete(storage)
    for file in storage.list(""):
        if extension(file.path) == "parquet":
            yield from read_manifest(f"{storage.root}/{file.path}", options)


def _normal(path: str, folder: str, tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, int]]:
    """The tables with the types and names of a listing."""
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
        columns |= _named(path, folder, columns["uri"], columns["container"], first_row)
        first_row += len(table)
        named = pa.table(columns).filter(columns["uri"].is_valid())
        yield named.cast(LISTING), columns["uri"].null_count


def _named(
    path: str, folder: str, uris: pa.ChunkedArray, containers: pa.ChunkedArray, first_row: int
) -> dict[str, pa.Array]:
    """uri and container by the names that a listing would give them; null for a row without a uri."""
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
                container_values[i] = _name(container, folder)
                uri_values[i] = container_values[i] + uri.removeprefix(container)
            else:
                uri_values[i] = _name(uri, folder)
        except InputError as error:
            raise InputError(f"row {first_row + i} of the manifest {path}: {error}") from None
    return {"uri": pa.array(uri_values, pa.string()), "container": pa.array(container_values, pa.string())}


def _is_plain(names: pa.ChunkedArray) -> pa.ChunkedArray:
    local = pc.and_(
        pc.match_substring_regex(names, _PLAIN_LOCAL), pc.invert(pc.match_substring_regex(names, _NOT_NORMAL))
    )
    return pc.or_(local, pc.match_substring_regex(names, _PLAIN_REMOTE))


def _tables(path: str, options: StoreOptions) -> Generator[pa.Table, None, None]:
    """Tables that have a column `uri`, and of the other columns those of `LISTING` only."""
    with _open(path, options) as file:
        kind = extension(path.split("?")[0] if uri_scheme(path) in ("http", "https") else path)
        if kind == "parquet":
            yield from _parse_parquet(file)
        elif kind == "csv":
            yield from _parse_csv(file, ",")
        else:
            yield from _parse_txt(file, path.rpartition("/")[0])


def _open(path: str, options: StoreOptions) -> BinaryIO:
    if uri_scheme(path) not in ("http", "https"):
        return open_file(path, options)
    bucket_uri, key = split_uri(path)       # web servers need not know of parts
    return io.BytesIO(bytes(obstore.get(open_bucket(bucket_uri, options), key).bytes()))


def _parse_parquet(file: BinaryIO) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as parquet:
        present = parquet.schema_arrow.names
        _check_uri(present)
        columns = [name for name in LISTING.names if name in present]
        for group in range(parquet.num_row_groups):     # iter_batches holds several: 900 MB for 10 million names
            yield parquet.read_row_group(group, columns=columns)


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
    """A file for a reader that would close it."""

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
        """A name as it is, spaces, quotes and commas too; one that is not UTF-8 gets its file:// form here."""
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
        raise ValueError(f"no column is named uri, only {', '.join(columns)}; name it so, or give one URI a line")


def _column(table: pa.Table, name: str) -> pa.ChunkedArray | pa.Array:
    wanted = LISTING.field(name).type
    if name not in table.column_names:
        return pa.nulls(len(table), wanted)
    column = table[name]
    try:
        return column.cast(wanted, safe=name != "mtime")   # nanoseconds are cut
    except pa.ArrowInvalid:
        if name != "mtime":
            raise
        return column.cast(pa.timestamp("us")).cast(wanted)   # text without a time zone is UTC


def _name(entry: str, folder: str) -> str:
    """A manifest's entry by the name that a listing would give it."""
    scheme = uri_scheme(entry)
    if scheme in REMOTE_SCHEMES:
        check_remote(entry)
        return entry
    if scheme == "file":
        return local_uri(absolute(local_path(entry)))
    if scheme is not None:
        raise InputError(unsupported(entry))
    if entry.startswith("/") or uri_scheme(folder) is None:
        return local_uri(absolute(posixpath.join(folder, entry)))
    bucket_uri, key_folder = split_uri(folder)
    return bucket_uri + posixpath.normpath(posixpath.join("/", key_folder, entry))


def check_remote(uri: str) -> None:
    """Raises InputError for a URI without a bucket or host, or with credentials, which would end up in the output."""
    host = uri.split("://", 1)[1].partition("/")[0]
    if not host:
        raise InputError(f"no bucket or host in {uri!r}")
    if "@" in host:
        raise InputError("credentials in a URI end up in the output: leave them out, the environment's are used")


def unsupported(uri: str) -> str:
    """What to tell of a URI whose scheme we do not read."""
    return f"cannot read {uri_scheme(uri)}:// ({uri!r}): use a local path, file://, s3://, gs://, http:// or https://"
