"""Images inside other files: members of tars (WebDataset shards) and zips, rows of Parquet files.

A container is indexed once, when INPUT is listed. Each member becomes a row of the to-do. A member of a plain tar is
later read by itself, as `size` bytes at `offset`. The `size` of all others is null, and `offset` says what the kind of
container needs: the place in the unpacked tar, that of the member's header in a zip, the row of a Parquet file.
The content of a container decides its kind; its name says only that it is one.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO, cast

import obstore
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import first_line
from pipeline.input.indexes import ENTRIES, KeptIndexes
from pipeline.input.members import ContainerError, Member, MemberError, MemberReader
from pipeline.input.names import OTHER_EXTENSION, InputError, extension
from pipeline.input.parquet_images import ParquetColumns, ParquetImages, row_names
from pipeline.input.rows import listing_table
from pipeline.input.tars import StreamedTar, Unpacked, is_compressed, is_tar, tar_members, unpacks_to_a_tar
from pipeline.input.windows import Windowed
from pipeline.input.zips import ZipMembers, is_zip, zip_members
from pipeline.schemas import LISTING
from pipeline.storage.files import open_file
from pipeline.storage.uris import StoreOptions, is_http, is_local, local_path

NOT_A_FILE_MEMBER = "links, devices and sparse files in archives"
OVERWRITTEN = "members of archives replaced by a later one of the same name"
NESTED = "archives inside archives"
UNREAD_ARCHIVE = "archives of a kind that is not read"

READ_ARCHIVES = "zip, tar, tar.gz, tar.bz2, tar.xz and tar.zst"

_TAR_ENDINGS = (
    ".tar", ".tar.gz", ".tgz", ".taz", ".tar.bz2", ".tbz", ".tbz2", ".tb2", ".tar.xz", ".txz", ".tar.zst", ".tzst",
    ".tar.zstd",
)
_ENDINGS = (*_TAR_ENDINGS, ".zip")
_UNREAD = frozenset({
    "7z", "ace", "arj", "br", "bz2", "cab", "dmg", "gz", "iso", "lha", "lz", "lz4", "lzh", "lzma", "lzo", "rar", "wim",
    "xz", "z", "zst", "zstd", "zipx",
})  # fmt: skip
_UNREAD_MAGIC = {
    b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar", b"\x04\x22\x4d\x18": "lz4", b"LZIP": "lzip", b"\x1f\x9d": "Z",
    b"MSCF": "cab",
}  # fmt: skip

_HEAD_BYTES = 512
_ENTRIES_AT_ONCE = 50_000
_HEADER_WINDOWS = 4 << 10, 256 << 10          # of a tar's headers, which lie between its members
_CONTENT_WINDOWS = 256 << 10, 8 << 20


NameRule = Callable[[str], str | None]   # of a member's name: why it is skipped; None if it is not


class Kind(StrEnum):
    """The kinds of containers."""

    TAR = "tar"
    COMPRESSED_TAR = "compressed tar"
    ZIP = "zip"
    PARQUET = "Parquet"


_TARS = (Kind.TAR, Kind.COMPRESSED_TAR)


@dataclass(frozen=True, slots=True)
class Members:
    """The images in one container."""

    rows: pa.Table                 # of schemas.LISTING, in the container's order
    skipped: Counter[str] = field(default_factory=Counter)
    damage: str | None = None      # why members may be missing
    renamed: int = 0               # how many have their row's number in their name, because the name is taken


def is_container(name: str, columns: ParquetColumns | None) -> bool:
    """Whether this is the name of an archive, or of a Parquet file if `columns` says where their images are."""
    path = name.split("?")[0] if is_http(name) else name
    base = path.rpartition("/")[2].lower()
    return (base.endswith(_ENDINGS) and base not in _ENDINGS) or (columns is not None and extension(path) == "parquet")


def name_pattern(columns: ParquetColumns | None) -> str:
    """`is_container` as a regular expression of RE2."""
    endings = "|".join(map(re.escape, (*_ENDINGS, *([".parquet"] if columns else []))))
    return rf"(?i)[^/](?:{endings})$|^https?://[^?]*[^/?](?:{endings})\?"


def is_unread_archive(name: str) -> bool:
    """Whether this is the name of an archive or a compressed file that is not read."""
    return extension(name) in _UNREAD and not is_container(name, None)


def kind_at(uri: str, options: StoreOptions) -> Kind | None:
    """The kind of container that a file is by its content; None for no container, and if it cannot be read.

    Raises InputError for an archive of a kind that is not read.
    """
    try:
        with _open(uri, options) as file:
            head = _head(file)
            if is_compressed(head) and not unpacks_to_a_tar(file):
                raise ContainerError("a compressed file that is no tar")
            return _kind(head)
    except _NotAFileError:
        return None
    except ContainerError as error:
        raise InputError(f"{uri} is {error}: unpack it; {READ_ARCHIVES} are read as they are") from None
    except (OSError, obstore.exceptions.BaseError):
        return None


def refuse_unread(name: str) -> None:
    """Raises InputError for the name of an archive that is not read."""
    if is_unread_archive(name):
        raise InputError(f"{name} is an archive that is not read: unpack it; {READ_ARCHIVES} are read as they are")


class _NotAFileError(ContainerError):
    """A device or a pipe: opening one can wait for ever."""


def _open(uri: str, options: StoreOptions) -> BinaryIO:
    if is_local(uri) and not stat.S_ISREG(os.stat(local_path(uri)).st_mode):   # noqa: PTH116  (any bytes in a name)
        raise _NotAFileError("not a regular file")
    return open_file(uri, options)


def _head(file: BinaryIO) -> bytes:
    """The beginning of a file that was opened just now; without the read-ahead of a buffer."""
    raw = cast(BinaryIO, getattr(file, "raw", file))
    head = raw.read(_HEAD_BYTES)
    raw.seek(0)
    return head


def _kind(head: bytes) -> Kind | None:
    """The kind of container that begins so. Raises ContainerError for one that is not read."""
    if is_zip(head):
        return Kind.ZIP
    if is_compressed(head):
        return Kind.COMPRESSED_TAR
    if head.startswith(b"PAR1"):
        return Kind.PARQUET
    for magic, name in _UNREAD_MAGIC.items():
        if head.startswith(magic):
            raise ContainerError(f"a {name} archive, which is not read")
    return Kind.TAR if is_tar(head) else None


def _kind_or_named(head: bytes, uri: str, columns: ParquetColumns | None) -> Kind:
    """The kind by content, else by name: a zip may begin with a program, an empty tar with zeros."""
    found = _kind(head)
    if found is Kind.PARQUET and columns is None:
        raise ContainerError("a Parquet file: --image-column names the column of its images")
    if found is None:
        kind = extension(uri.split("?")[0] if is_http(uri) else uri)
        return {"zip": Kind.ZIP, "parquet": Kind.PARQUET if columns else Kind.TAR}.get(kind, Kind.TAR)
    return found


def list_members(
    container: dict[str, Any], options: StoreOptions, columns: ParquetColumns | None, skips: NameRule,
    kept: KeptIndexes | None = None,
) -> Members:
    """The images in a container. kept: the indexes of earlier runs, which gets new ones.

    skips: of the members of an archive; every row of a Parquet file is an image.

    container: its row of `schemas.LISTING`. If a part of it cannot be read, the result has the images before that part,
    the damage, and a row for the container itself; that row fails, and the next run tries it again.
    Raises InputError if a column is missing.
    """
    index = kept and kept.read(container)
    if index is not None:
        return _select(container, index, skips)
    uri, entries, damage = container["uri"], _Entries(), None
    try:
        with _open(uri, options) as file:
            kind = _kind_or_named(_head(file), uri, columns)
            if kind is Kind.PARQUET:
                return _parquet_members(container, *row_names(file, uri, cast(ParquetColumns, columns)))
            for member in _archive_members(file, kind):
                entries.add(member, kind)
    except (ContainerError, EOFError, OSError, pa.ArrowException, obstore.exceptions.BaseError) as error:
        damage = f"cannot read all of {uri}: {first_line(error)}"
    index = entries.table()
    if kept and not damage:
        kept.write(container, index)
    return _select(container, index, skips, damage)


def _archive_members(file: BinaryIO, kind: Kind) -> Iterator[Member]:
    if kind is Kind.TAR:
        headers = Windowed(file, *_HEADER_WINDOWS)
        return tar_members(headers, headers.size)
    content = Windowed(file, *_CONTENT_WINDOWS)
    return zip_members(content) if kind is Kind.ZIP else tar_members(Unpacked(content), None)


def _parquet_members(container: dict[str, Any], names: list[str], renamed: int) -> Members:
    index = pa.table([names, range(len(names)), pa.nulls(len(names), pa.int64())], schema=ENTRIES)
    return Members(_member_rows(container, index), renamed=renamed)


class _Entries:
    """Collects the members of an archive, most of them as Arrow: Python objects take ten times the memory."""

    def __init__(self) -> None:
        self._tables = [ENTRIES.empty_table()]
        self._waiting: list[dict[str, Any]] = []

    def add(self, member: Member, kind: Kind) -> None:
        size = member.size if kind is Kind.TAR else None
        self._waiting.append({"name": member.name, "offset": member.offset, "size": size})
        if len(self._waiting) >= _ENTRIES_AT_ONCE:
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return pa.concat_tables(self._tables)

    def _flush(self) -> None:
        self._tables.append(pa.Table.from_pylist(self._waiting, schema=ENTRIES))
        self._waiting.clear()


def _select(container: dict[str, Any], index: pa.Table, skips: NameRule, damage: str | None = None) -> Members:
    """The members that are read, as rows; and one for the container itself if it is damaged."""
    skipped: Counter[str] = Counter()
    tables = [ENTRIES.empty_table()]
    for batch in index.to_batches(_ENTRIES_AT_ONCE):
        reasons = list(_skip_reasons(batch, skips))
        skipped.update(filter(None, reasons))
        tables.append(pa.table(batch).filter(pa.array([reason is None for reason in reasons], pa.bool_())))
    chosen = pa.concat_tables(tables)
    last = _last_of_each_name(chosen)
    if len(last) < len(chosen):
        skipped[OVERWRITTEN] = len(chosen) - len(last)
    rows = _member_rows(container, last)
    if damage:
        lost = {**container, "container": container["uri"], "offset": None, "size": None}
        rows = pa.concat_tables([rows, pa.Table.from_pylist([lost], schema=LISTING)])
    return Members(rows, skipped, damage)


def _skip_reasons(entries: pa.RecordBatch, skips: NameRule) -> Iterator[str | None]:
    for name, is_file in zip(entries["name"].to_pylist(), entries["offset"].is_valid().to_pylist(), strict=True):
        reason = skips(name) if is_file else NOT_A_FILE_MEMBER
        is_nested = reason == OTHER_EXTENSION and (is_container(name, None) or is_unread_archive(name))
        yield NESTED if is_nested else reason


def _last_of_each_name(entries: pa.Table) -> pa.Table:
    """Of entries with the same name the last counts, as when an archive is unpacked."""
    if pc.count_distinct(entries["name"]).as_py() == len(entries):
        return entries
    numbered = pa.table({"name": entries["name"], "number": range(len(entries))})
    numbers = numbered.group_by("name").aggregate([("number", "max")])["number_max"]
    return entries.take(numbers.take(pc.sort_indices(numbers)))


def _member_rows(container: dict[str, Any], entries: pa.Table) -> pa.Table:
    uri, n_rows = container["uri"], len(entries)
    return listing_table({
        "uri": pc.binary_join_element_wise(f"{uri}#", entries["name"], ""),
        "container": [uri] * n_rows,
        "offset": entries["offset"],
        "size": entries["size"],
        "etag": [container["etag"]] * n_rows,
        "mtime": [container["mtime"]] * n_rows,
    })


def open_members(uri: str, options: StoreOptions, image_column: str | None, max_bytes: int) -> MemberReader:
    """A reader of the members of a container whose rows have no size. max_bytes: of a member.

    Raises MemberError and ContainerError for what cannot be read, and any error of reading.
    """
    file = _open(uri, options)
    try:
        kind = _kind(_head(file))
        if kind is Kind.PARQUET and image_column is None:
            raise MemberError("an image inside a Parquet file: name its column with --image-column")
        if kind is None and extension(uri) != "zip":
            raise MemberError("no size for a member of a container: add the column size to the manifest")
        if kind is Kind.PARQUET:
            return ParquetImages(file, uri, cast(str, image_column), max_bytes)
        content = Windowed(file, *_CONTENT_WINDOWS)
        return StreamedTar(content, max_bytes) if kind in _TARS else ZipMembers(content, max_bytes)
    except BaseException:
        file.close()
        raise


def renamed_line(renamed: int) -> str:
    """The renamed members in one line for the user."""
    return (
        f"{renamed:,} images in Parquet files have a name that another row of their file has too: the number of their "
        "row follows it, as in name~17"
    )

