"""Read a list of images, piece by piece: a Parquet, CSV, JSON or text file, or a folder of Parquet files."""

from __future__ import annotations

import gzip
import io
import posixpath
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, cast

import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import first_line
from pipeline.input import text_lists
from pipeline.input.entries import local_name, name_checker, people_name, valid_name
from pipeline.input.list_columns import BadRow, Columns, choice_note, find_uri_column, is_text
from pipeline.input.list_columns import uri_column as choose_uri_column
from pipeline.input.manifest_folder import check_complete
from pipeline.input.names import InputError, extension, uri_extension
from pipeline.input.parquet_images import image_columns, missing_image_column
from pipeline.input.text_lists import TextList
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

MAX_WEB_BYTES = 4 << 30      # of a manifest on a web server, which is held in memory

_MAX_NAME_CHARACTERS = 16_384    # of a path 4,096, of an object's key 1,024, of a signed address a few thousand
_PARQUET_ROWS = 65_536
_PARQUET_READ_BYTES = 1 << 20

# URIs that already have the form of a listing. All others are converted one by one, which is slower.
_PLAIN_REMOTE = rf"^(?:{'|'.join(REMOTE_SCHEMES)})://[^/@]+(?:/|$)"
_PLAIN_LOCAL = r"^/[^/]"
_NOT_NORMAL = r"//|/\.{1,2}(?:/|$)|/$"


def is_manifest(path: str) -> bool:
    """Whether this is the name of a manifest file."""
    return manifest_kind(path) is not None


def manifest_kind(path: str) -> str | None:
    """How a manifest of this name is written: "parquet", or a value of KINDS; None if this is not the name of one."""
    kind = uri_extension(path)
    if kind == "parquet":
        return kind
    if kind == "gz":
        kind = extension((path.split("?")[0] if is_http(path) else path)[:-3])
    return text_lists.KINDS.get(kind)


def is_manifest_folder(path: str) -> bool:
    """Whether this is the name of a folder of Parquet files, as `jobs.manifest` and Spark write them."""
    return extension(path) == "parquet"


def read_manifest(
    path: str, options: StoreOptions, uri_column: str | None = None, note: Callable[[str], None] = lambda _: None
) -> Generator[tuple[pa.Table, int], None, None]:
    """A manifest's rows as tables of `schemas.LISTING`, each with the number of further rows that have no uri.

    Tables have a column of URIs, by one of its usual names or `uri_column`, and may have the others of `LISTING`. Text
    files may instead have one URI a line. Relative paths start at the manifest's folder. Entries get the same uri as in
    a listing.
    note: gets lines for the user, such as values that were ignored.
    Raises InputError for a file that is no manifest, and for the first entry that can never be read.
    """
    path = local_path(path)
    findings = _Findings()
    yield from _read_file(path, options, uri_column, findings)
    for line in findings.lines():
        note(f"{path}: {line}")


def _read_file(
    path: str, options: StoreOptions, uri_column: str | None, findings: _Findings
) -> Iterator[tuple[pa.Table, int]]:
    try:
        with _open(path, options) as file:
            yield from _Reader(path, uri_column, findings).read(file)
    except BadRow as error:
        raise InputError(f"{error.place} of the manifest {path}: {error.reason}") from None
    except (pa.ArrowException, OSError, EOFError, ValueError, RecursionError, zlib.error,
            obstore.exceptions.BaseError) as error:
        raise InputError(f"cannot read the manifest {path}: {first_line(error)}") from error


def read_manifest_folder(
    folder: str, options: StoreOptions, uri_column: str | None = None, note: Callable[[str], None] = lambda _: None
) -> Generator[tuple[pa.Table, int], None, None]:
    """The same for a folder of Parquet files, in the order of their names.

    Raises InputError also if `jobs.manifest` has not finished it.
    """
    storage = open_storage(folder, options)
    check_complete(storage)
    findings = _Findings()
    for file in storage.list(""):
        if extension(file.path) == "parquet":
            yield from _read_file(f"{storage.root}/{file.path}", options, uri_column, findings)
    for line in findings.lines():
        note(f"{storage.root}: {line}")


@dataclass(slots=True)
class _Findings:
    """What is to be said of a manifest, once everything is read."""

    columns: Columns = field(default_factory=Columns)
    notes: list[str] = field(default_factory=list)
    comments: int = 0

    def lines(self) -> Iterator[str]:
        """Lines for the user."""
        yield from dict.fromkeys(self.notes)
        yield from self.columns.notes()
        if self.comments:
            yield f"{self.comments:,} lines that begin with # are taken as comments"


class _Reader:
    """Reads one file of a manifest."""

    def __init__(self, path: str, uri_column: str | None, findings: _Findings) -> None:
        self._kind = str(manifest_kind(path) or "txt")
        self._path = path
        self._folder = posixpath.dirname(path)
        self._uri_column = uri_column
        self._exists = name_checker(self._folder)
        self._findings = findings

    def read(self, file: BinaryIO) -> Iterator[tuple[pa.Table, int]]:
        """The tables with the types and uris of a listing."""
        if self._kind != "parquet":
            yield from self._read_text(file)
            return
        first_row = 1
        for table in _parse_parquet(file, self._path, self._uri_column, self._findings.notes):
            yield self._listing(table, partial(_parquet_place, first_row))
            first_row += len(table)

    def _read_text(self, file: BinaryIO) -> Iterator[tuple[pa.Table, int]]:
        text = TextList(self._kind, self._uri_column, self._exists, self._findings.notes)
        for rows in text_lists.pieces(text.rows(file)):
            named = [row for row in rows if row.uri and row.uri.strip()]
            kept = [(row, name) for row in named if (name := people_name(str(row.uri), self._exists)) is not None]
            self._findings.comments += len(named) - len(kept)
            names = pa.array([valid_name(name, self._folder, self._exists) for _, name in kept], pa.string())
            table = pa.table({"uri": names, **text_lists.other_columns([row for row, _ in kept])})
            places = [row.place for row, _ in kept]
            found, nameless = self._listing(table, places.__getitem__)
            yield found, nameless + len(rows) - len(named)

    def _listing(self, table: pa.Table, place: Callable[[int], str]) -> tuple[pa.Table, int]:
        columns = self._findings.columns.convert(table)
        columns |= _normal_uris(self._folder, columns["uri"], columns["container"], place)
        named = pa.table(columns).filter(columns["uri"].is_valid())
        return named.cast(LISTING), columns["uri"].null_count


def _parquet_place(first_row: int, i: int) -> str:
    return f"row {first_row + i}"


def _normal_uris(
    folder: str, uris: pa.ChunkedArray, containers: pa.ChunkedArray, place: Callable[[int], str]
) -> dict[str, pa.Array]:
    """The columns uri and container as in a listing; null for a row without a uri. Raises BadRow."""
    _refuse_images_as_text(uris, place)
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
            raise BadRow(place(i), str(error)) from None
    return {"uri": pa.array(uri_values, pa.string()), "container": pa.array(container_values, pa.string())}


def _refuse_images_as_text(uris: pa.ChunkedArray, place: Callable[[int], str]) -> None:
    too_long = pc.greater(pc.utf8_length(uris), _MAX_NAME_CHARACTERS)
    if pc.any(too_long).as_py():
        i = pc.index(too_long, True).as_py()
        raise BadRow(place(i), (
            f"a name of {len(uris[i].as_py()):,} characters: if the column holds the images themselves, as text, store "
            "their bytes in Parquet (--image-column), or choose another column with --uri-column"
        ))


def _is_plain(names: pa.ChunkedArray) -> pa.ChunkedArray:
    local = pc.and_(
        pc.match_substring_regex(names, _PLAIN_LOCAL), pc.invert(pc.match_substring_regex(names, _NOT_NORMAL))
    )
    return pc.or_(local, pc.match_substring_regex(names, _PLAIN_REMOTE))


@contextmanager
def _open(path: str, options: StoreOptions) -> Iterator[BinaryIO]:
    if is_http(path):
        opened: BinaryIO = io.BytesIO(web.read_whole(path, MAX_WEB_BYTES))       # a web server may not support ranges
    else:
        opened = open_file(path, options)
    with opened as file:
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if uri_extension(path) == "gz" else file


def _parse_parquet(file: BinaryIO, path: str, wanted: str | None, notes: list[str]) -> Iterator[pa.Table]:
    """Tables with a column `uri` and with no columns other than those of `LISTING`."""
    # With pre_buffer or without buffer_size a whole row group is held. A single one may have ten million rows.
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_READ_BYTES) as parquet:
        schema = parquet.schema_arrow
        if wanted is None and "uri" not in schema.names and (images := image_columns(schema)):
            raise InputError(missing_image_column(path, images))
        texts = [each.name for each in schema if is_text(each.type) or (wanted or "").startswith(f"{each.name}.")]
        uri = find_uri_column(texts, wanted) or choose_uri_column(schema.names, wanted)
        if (line := choice_note(texts, uri)) and line not in notes:
            notes.append(line)
        columns = [uri, *(name for name in LISTING.names[1:] if name in schema.names and name != uri)]
        for group in range(parquet.num_row_groups):     # of several groups iter_batches keeps more than one
            for batch in parquet.iter_batches(_PARQUET_ROWS, [group], columns, use_threads=False):
                batch.validate(full=True)      # a string may not be UTF-8
                yield _with_uri(pa.table(batch), uri)


def _with_uri(table: pa.Table, name: str) -> pa.Table:
    """The table with the column of this name, or this field of a column, as its column uri."""
    if name in table.column_names:
        return table.rename_columns(["uri" if each == name else each for each in table.column_names])
    first, *fields = name.split(".")
    return table.append_column("uri", pc.struct_field(table[first], fields))


def _normal_uri(entry: str, folder: str) -> str:
    """The uri that a listing would give to a manifest's entry."""
    scheme = uri_scheme(entry)
    if scheme in REMOTE_SCHEMES:
        check_remote(entry)
        return entry
    if not is_local(entry):
        raise InputError(unsupported(entry))
    path = local_name(local_path(entry), name_checker(folder))
    if path.startswith("/") or is_local(folder):
        return local_uri(absolute(posixpath.join(folder, path)))
    bucket_uri, key_folder = split_uri(folder)
    return bucket_uri + posixpath.normpath(posixpath.join("/", key_folder, path))


def check_remote(uri: str) -> None:
    """Raises InputError for a URI without a bucket or host, and for one with credentials."""
    host = uri.split("://", 1)[1].partition("/")[0]
    if not host:
        raise InputError(f"no bucket or host in {uri!r}: write s3://bucket/key, gs://bucket/key or https://host/path")
    if "@" in host:
        raise InputError("credentials in a URI end up in the output: remove them and set them in the environment")
