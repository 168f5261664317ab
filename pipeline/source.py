"""What to read: INPUT, whatever its kind, as a table of to-do rows.

A name is a stable identity, so the same image gets the same `uri` from a folder, a glob or a manifest: a local file
its absolute path with links not resolved, an object its raw key. Only names that are not UTF-8 are percent-encoded.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa

from pipeline.manifest import check_remote, is_manifest, read_manifest, unsupported
from pipeline.names import Glob, InputError, absolute, is_hidden, literal_beginning, local_path, local_uri, may_be_image
from pipeline.objectstore import (
    BUCKET_SCHEMES,
    REMOTE_SCHEMES,
    StoreOptions,
    open_bucket,
    plain_etag,
    s3_client,
    split_uri,
    uri_scheme,
)
from pipeline.schemas import LISTING, TIMESTAMP

OTHER_EXTENSION = "with another extension"
HIDDEN = "hidden"
MARKER = "directory markers"
OUTPUT = "of the output itself"
NOT_A_FILE = "neither files nor folders"
LOOP = "links back to a folder above"
UNREADABLE = "folders that cannot be read"
NO_URI = "manifest rows without a uri"

_CHUNK_ROWS = 50_000
_MAX_MTIME_US = 62_135_596_800_000_000   # as far from 1970 as the year 1 is: Python reads no time before that


class InputKind(StrEnum):
    """What INPUT turned out to be."""

    FOLDER = "folder"
    FILE = "file"
    GLOB = "glob"
    MANIFEST = "manifest"
    PREFIX = "bucket prefix"
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Listing:
    """What INPUT holds: `rows` is a table of `schemas.LISTING`, in the order of listing, duplicates and all."""

    kind: InputKind
    rows: pa.Table
    skipped: dict[str, int]       # how many names were left out, by reason
    warnings: tuple[str, ...]     # a line for each folder that could not be read

    def skipped_line(self) -> str:
        """What was left out, in one line for the user; empty if nothing was."""
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))


def list_input(inputs: str, *, output: str, all_files: bool, options: StoreOptions) -> Listing:
    """List INPUT: a folder, a file, a glob, a manifest, a bucket prefix, or one object.

    inputs: without query parameters; `objectstore.parse_input_uri` takes them off, into `options`.
    output: the output's `Storage.root`, which is left out where it lies inside INPUT; "" for none.
    all_files: take hidden names and every extension. A manifest's rows and single files are never filtered, and what
    a glob matches not by extension if the glob names one.
    Raises InputError where there is nothing to read.
    """
    scheme = uri_scheme(inputs)
    rows = _Rows()
    if scheme is None or scheme == "file":
        path = absolute(local_path(inputs) if scheme else inputs)
        kind = _list_local(path, output, all_files, options, rows)
    elif scheme in BUCKET_SCHEMES:
        check_remote(inputs)
        kind = _list_bucket(inputs, output, all_files, options, rows)
    elif scheme in REMOTE_SCHEMES:
        check_remote(inputs)
        kind = _one(inputs, InputKind.OBJECT, options, rows, rows.add)
    else:
        raise InputError(unsupported(inputs))
    listing = rows.finish(kind)
    if not listing.rows.num_rows:
        raise InputError(_nothing_in(inputs, listing))
    return listing


@dataclass(slots=True)
class _Rows:
    """To-do rows as they are found, in columns and chunks: an object a row would cost gigabytes for millions."""

    skipped: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    _tables: list[pa.Table] = field(default_factory=lambda: [LISTING.empty_table()])
    _uris: list[str] = field(default_factory=list)
    _sizes: list[int | None] = field(default_factory=list)
    _etags: list[str | None] = field(default_factory=list)
    _mtimes: list[int | datetime | None] = field(default_factory=list)   # microseconds since 1970, or the time itself

    def add(
        self, uri: str, size: int | None = None, etag: str | None = None, mtime: int | datetime | None = None
    ) -> None:
        self._uris.append(uri)
        self._sizes.append(size)
        self._etags.append(etag)
        self._mtimes.append(mtime)
        if len(self._uris) >= _CHUNK_ROWS:
            self._flush()

    def add_local(self, path: str, found: os.stat_result | None) -> None:
        if found is None:
            self.add(local_uri(path))
        else:
            mtime_us = found.st_mtime_ns // 1000
            self.add(local_uri(path), found.st_size, None, mtime_us if abs(mtime_us) < _MAX_MTIME_US else None)

    def add_manifest(self, path: str, options: StoreOptions) -> None:
        table, nameless = read_manifest(path, options)
        self._tables.append(table)
        if nameless:
            self.skipped[NO_URI] += nameless

    def finish(self, kind: InputKind) -> Listing:
        self._flush()
        return Listing(kind, pa.concat_tables(self._tables), dict(self.skipped), tuple(self.warnings))

    def _flush(self) -> None:
        columns = {
            "uri": pa.array(self._uris, pa.string()),
            "container": pa.nulls(len(self._uris), pa.string()),
            "offset": pa.nulls(len(self._uris), pa.int64()),
            "size": pa.array(self._sizes, pa.int64()),
            "etag": pa.array(self._etags, pa.string()),
            "mtime": pa.array(self._mtimes, TIMESTAMP),
        }
        self._tables.append(pa.table(columns, schema=LISTING))
        for column in (self._uris, self._sizes, self._etags, self._mtimes):
            column.clear()


def _one(path: str, kind: InputKind, options: StoreOptions, rows: _Rows, add: Callable[[str], None]) -> InputKind:
    """A single file or object: one row, or a manifest's many."""
    if is_manifest(path):
        rows.add_manifest(path, options)
        return InputKind.MANIFEST
    add(path)
    return kind


# --- local


def _list_local(path: str, output: str, all_files: bool, options: StoreOptions, rows: _Rows) -> InputKind:
    try:
        found = _stat(path)
    except PermissionError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if found and stat.S_ISDIR(found.st_mode):
        if _identity(path) == _identity(output):
            raise InputError(f"INPUT and OUTPUT are the same folder, {path}: give OUTPUT one of its own")
        _list_folder(path, output, all_files, rows)
        return InputKind.FOLDER
    if found or os.path.lexists(path):
        return _one(path, InputKind.FILE, options, rows, lambda name: rows.add_local(name, found))
    if literal_beginning(path) is None:
        raise InputError(f"no such file or folder: {path}")
    _list_glob(Glob(path, hidden=all_files), output, all_files, rows)
    return InputKind.GLOB


def _list_folder(folder: str, output: str, all_files: bool, rows: _Rows) -> None:
    def enter(name: str, _: str) -> bool:
        if all_files or not is_hidden(name):
            return True
        rows.skipped[HIDDEN] += 1
        return False

    for path, entry in _walk(folder, output, rows, enter):
        if reason := _skip_reason(entry.name, all_files):
            rows.skipped[reason] += 1
        else:
            rows.add_local(path, _entry_stat(entry))


def _list_glob(glob: Glob, output: str, all_files: bool, rows: _Rows) -> None:
    base = glob.beginning.rpartition("/")[0] or "/"
    if not Path(base).is_dir():
        return
    for path, entry in _walk(base, output, rows, lambda _, folder: glob.may_hold(folder)):
        if glob.matches(path):
            if all_files or glob.names_extension or may_be_image(entry.name):
                rows.add_local(path, _entry_stat(entry))
            else:
                rows.skipped[OTHER_EXTENSION] += 1


def _walk(
    top: str, output: str, rows: _Rows, enter: Callable[[str, str], bool]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Path and entry of all that is not a folder under `top`. Links to folders are followed, but to one above.

    enter: says of a folder, by its name and path, whether to go in.
    """
    output_identity = _identity(output)
    stack = [(top, (_identity(top),))]
    while stack:
        folder, lineage = stack.pop()
        try:
            scan = os.scandir(folder)
        except OSError as error:
            if folder == top:
                raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
            rows.skipped[UNREADABLE] += 1
            rows.warnings.append(f"cannot read the folder {folder}: {error.strerror}")
            continue
        prefix = folder.rstrip("/") + "/"
        with scan:
            for entry in scan:
                path = prefix + entry.name
                if _is_folder(entry):
                    identity = _identity(path)
                    if identity and identity == output_identity:
                        rows.skipped[OUTPUT] += 1
                    elif identity and identity in lineage:
                        rows.skipped[LOOP] += 1
                    elif enter(entry.name, path):
                        stack.append((path, (*lineage, identity)))
                elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                    yield path, entry
                else:
                    rows.skipped[NOT_A_FILE] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:   # a link to itself
        return False


def _entry_stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Size and time of the file behind the entry; None for a broken link, which will fail to be fetched."""
    try:
        return entry.stat()
    except OSError:
        return None


def _stat(path: str) -> os.stat_result | None:
    """None if there is nothing, or a broken link. Raises PermissionError."""
    try:
        return Path(path).stat()
    except PermissionError:
        raise
    except (OSError, ValueError):   # ValueError: a null character
        return None


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode; None for what is not there, as an output in a bucket."""
    try:
        found = _stat(path) if path else None
    except PermissionError:
        return None
    return (found.st_dev, found.st_ino) if found else None


def _skip_reason(relative: str, all_files: bool) -> str | None:
    """Why a name found in a folder or under a prefix is left out; None if it is not."""
    if all_files:
        return None
    if any(map(is_hidden, relative.split("/"))):
        return HIDDEN
    return None if may_be_image(relative) else OTHER_EXTENSION


# --- buckets

_Found = tuple[str, int, str | None, datetime]   # key, size, etag, mtime


def _list_bucket(uri: str, output: str, all_files: bool, options: StoreOptions, rows: _Rows) -> InputKind:
    bucket_uri, key = split_uri(uri)
    if key and not key.endswith("/") and (found := _head(bucket_uri, key, options)):
        return _one(uri, InputKind.OBJECT, options, rows, lambda name: rows.add(name, *found[1:]))
    folder = key.rstrip("/") + "/" if key.strip("/") else key
    is_glob = literal_beginning(key) is not None and next(_list(bucket_uri, folder, options), None) is None
    if f"{bucket_uri}/{folder}".rstrip("/") == output:
        raise InputError(f"INPUT and OUTPUT are the same place, {output}: give OUTPUT a prefix of its own")
    glob = Glob(key, hidden=all_files) if is_glob else None
    top = glob.beginning if glob else folder
    output_folder = output.removeprefix(bucket_uri + "/") + "/" if output.startswith(bucket_uri + "/") else None
    if output_folder and not output_folder.startswith(top.rpartition("/")[0]):
        output_folder = None   # INPUT lies inside OUTPUT, not the other way round
    for found_key, size, etag, mtime in _list(bucket_uri, top, options):
        if glob and not glob.matches(found_key):
            continue
        if found_key.endswith("/") and not size:
            reason = MARKER
        elif output_folder and found_key.startswith(output_folder):
            reason = OUTPUT
        elif glob:
            reason = None if all_files or glob.names_extension or may_be_image(found_key) else OTHER_EXTENSION
        else:
            reason = _skip_reason(found_key[len(folder) :], all_files)
        if reason:
            rows.skipped[reason] += 1
        else:
            rows.add(f"{bucket_uri}/{found_key}", size, etag, mtime)
    return InputKind.GLOB if glob else InputKind.PREFIX


def _head(bucket_uri: str, key: str, options: StoreOptions) -> _Found | None:
    """The object of exactly this key; None if there is none."""
    if bucket_uri.startswith("s3://"):   # of all keys that begin so it is the first
        first = next(_list(bucket_uri, key, options), None)
        return first if first and first[0] == key else None
    with _explained(bucket_uri):
        try:
            return _found(obstore.head(open_bucket(bucket_uri, options), key))
        except FileNotFoundError:
            return None


def _list(bucket_uri: str, prefix: str, options: StoreOptions) -> Iterator[_Found]:
    """The objects whose key begins so, in order of keys; read page by page."""
    with _explained(bucket_uri):
        yield from (_list_s3 if bucket_uri.startswith("s3://") else _list_gs)(bucket_uri, prefix, options)


def _list_s3(bucket_uri: str, prefix: str, options: StoreOptions) -> Iterator[_Found]:
    # boto3, since one key with an empty, "." or ".." part makes obstore's whole listing fail.
    pages = s3_client(options).get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket_uri.removeprefix("s3://"), Prefix=prefix):
        for item in page.get("Contents", ()):
            yield item["Key"], item["Size"], plain_etag(item.get("ETag")), item["LastModified"]


def _list_gs(bucket_uri: str, prefix: str, options: StoreOptions) -> Iterator[_Found]:
    # obstore lists whole folders: take the one that holds the prefix, and of it what begins so.
    folder = prefix.rpartition("/")[0]
    for metas in obstore.list(open_bucket(bucket_uri, options), folder or None, chunk_size=1000):
        for meta in metas:
            if meta["path"].startswith(prefix):
                yield _found(meta)


def _found(meta: Any) -> _Found:
    return meta["path"], meta["size"], plain_etag(meta["e_tag"]), meta["last_modified"]


# --- messages


def _nothing_in(inputs: str, listing: Listing) -> str:
    left_out = f" ({listing.skipped_line()})" if listing.skipped else ""
    fix = "check the path"
    if OTHER_EXTENSION in listing.skipped or HIDDEN in listing.skipped:
        fix = "--all-files takes hidden names and every extension"
    elif listing.kind is InputKind.PREFIX and not inputs.endswith("/"):
        fix = f"check the prefix, which is taken as a folder; {inputs}* takes all keys that begin so"
    return f"no images found in the {listing.kind} {inputs}{left_out}: {fix}"


@contextlib.contextmanager
def _explained(bucket_uri: str) -> Iterator[None]:
    """Turn the clients' errors into InputErrors that say what to do."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, OSError, ValueError, obstore.exceptions.BaseError) as error:
        code = error.response["Error"].get("Code") if isinstance(error, ClientError) else None
        if code == "NoSuchBucket":
            fix = "there is no such bucket at this endpoint; check its name and AWS_ENDPOINT_URL"
        elif code == "AccessDenied" or re.search(r"status code: 40[13]", str(error)):   # so obstore, without a class
            fix = "access denied; check the credentials, or add ?anonymous=true for a public bucket"
        else:
            fix = "check the credentials, the endpoint and the region"
        raise InputError(f"cannot list {bucket_uri}: {fix} ({str(error).splitlines()[0]})") from error
