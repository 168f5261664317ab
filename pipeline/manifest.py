"""A list of images to read, as a Parquet, CSV or text file."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.names import InputError, absolute, extension, local_path, local_uri
from pipeline.objectstore import REMOTE_SCHEMES, StoreOptions, open_bucket, split_uri, uri_scheme
from pipeline.schemas import LISTING

MANIFEST_EXTENSIONS = frozenset({"parquet", "csv", "txt"})


def is_manifest(path: str) -> bool:
    """Whether the name is a manifest's; of an http(s) URI the query does not count."""
    return extension(path.split("?")[0] if uri_scheme(path) in ("http", "https") else path) in MANIFEST_EXTENSIONS


def read_manifest(path: str, options: StoreOptions) -> tuple[pa.Table, int]:
    """A manifest's rows as a table of `schemas.LISTING`, and how many more had no uri.

    `.parquet` and `.csv` have a column `uri` and may have the others of `LISTING`; `.csv` and `.txt` may as well have
    one URI a line. Relative paths start at the manifest's own folder. Entries get the names that a listing gives.
    Raises InputError for a file that is not such a thing, and for the first entry that can never be read.
    """
    try:
        table = _parse(path, _read_bytes(path, options))
        columns = {name: _column(table, name) for name in LISTING.names}
    except (pa.ArrowException, OSError, ValueError, obstore.exceptions.BaseError) as error:
        raise InputError(f"cannot read the manifest {path}: {str(error).splitlines()[0]}") from error
    folder = path.rpartition("/")[0]
    uris, containers = columns["uri"].to_pylist(), columns["container"].to_pylist()
    for i, (uri, container) in enumerate(zip(uris, containers, strict=True)):
        try:
            if not uri:
                uris[i] = None
            elif container:
                containers[i] = _name(container, folder)
                uris[i] = containers[i] + uri.removeprefix(container)
            else:
                uris[i] = _name(uri, folder)
        except InputError as error:
            raise InputError(f"row {i + 1} of the manifest {path}: {error}") from None
    columns["uri"], columns["container"] = pa.array(uris, pa.string()), pa.array(containers, pa.string())
    named = pa.table(columns).filter(columns["uri"].is_valid())
    return named.cast(LISTING), columns["uri"].null_count


def _read_bytes(path: str, options: StoreOptions) -> bytes:
    if uri_scheme(path) is None:
        return Path(path).read_bytes()
    bucket_uri, key = split_uri(path)
    return bytes(obstore.get(open_bucket(bucket_uri, options), key).bytes())


def _parse(path: str, content: bytes) -> pa.Table:
    """A table that has a column `uri`, and of the other columns those of `LISTING` only."""
    kind = extension(path.split("?")[0])
    if kind == "parquet":
        table = _parse_parquet(content)
    elif not content.strip():
        table = pa.table({"uri": pa.array([], pa.string())})
    else:
        table = _parse_csv(content, ",") if kind == "csv" else _parse_txt(content)
    if "uri" not in table.column_names:
        raise ValueError(
            f"no column is named uri, only {', '.join(table.column_names)}; name it so, or give one URI a line"
        )
    return table


def _parse_parquet(content: bytes) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(content))
    present = file.schema_arrow.names
    return file.read(columns=[name for name in LISTING.names if name in present] if "uri" in present else None)


def _parse_csv(content: bytes, delimiter: str) -> pa.Table:
    def parse(**read: Any) -> pa.Table:
        return pa.csv.read_csv(
            pa.BufferReader(content),
            read_options=pa.csv.ReadOptions(**read),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in LISTING.names}, null_values=[""],
                strings_can_be_null=True, quoted_strings_can_be_null=True,
            ),
        )

    table = parse()
    return parse(column_names=["uri"]) if "uri" not in table.column_names and table.num_columns == 1 else table


def _parse_txt(content: bytes) -> pa.Table:
    lines = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).split("\n")
    header = lines[0].rstrip("\r")
    for delimiter in "\t,":
        if delimiter in header and "uri" in header.split(delimiter):
            return _parse_csv(content, delimiter)
    # A line is a name as it is, spaces, quotes and commas too; one that is not UTF-8 gets its file:// form here.
    names = [line.rstrip("\r") for line in lines[header == "uri" :]]
    return pa.table({"uri": pa.array([local_uri(name) for name in names if name], pa.string())})


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
