"""What to read: INPUT, whatever its kind, as rows of the to-do.

A name is a stable identity, so the same image gets the same `uri` from a folder, a glob or a manifest: a local file
its absolute path with links not resolved, an object its raw key, a member `<container>#<member>`. Only names that are
not UTF-8 are percent-encoded.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.input.buckets import Found, explained, list_objects
from pipeline.input.containers import Members, ParquetColumns, is_container, list_members, refuse_compressed
from pipeline.input.manifest import (
    check_remote,
    is_manifest,
    is_manifest_folder,
    read_manifest,
    read_manifest_folder,
    unsupported,
)
from pipeline.input.names import (
    HIDDEN,
    MARKER,
    OTHER_EXTENSION,
    OUTPUT,
    Glob,
    InputError,
    absolute,
    is_hidden,
    literal_beginning,
    local_path,
    local_uri,
    may_be_image,
    skip_reason,
)
from pipeline.schemas import LISTING, TIMESTAMP
from pipeline.storage.clients import open_bucket, plain_etag
from pipeline.storage.uris import BUCKET_SCHEMES, FROM_ENVIRONMENT, REMOTE_SCHEMES, StoreOptions, split_uri, uri_scheme

NOT_A_FILE = "neither files nor folders"
LOOP = "links back to a folder above"
UNREADABLE = "folders that cannot be read"
NO_URI = "manifest rows without a uri"

_INDEX_THREADS = 16
_CHUNK_ROWS = 50_000
_MAX_MTIME_US = 62_135_596_800_000_000   # as far from 1970 as the year 1 is: Python reads no time before that


class InputKind(StrEnum):
    """What INPUT turned out to be."""

    FOLDER = "folder"
    FILE = "file"
    GLOB = "glob"
    MANIFEST = "manifest"
    CONTAINER = "container"
    PREFIX = "bucket prefix"
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Listing:
    """What all INPUTs together hold, beside the rows themselves."""

    kinds: tuple[InputKind, ...]  # of each INPUT
    skipped: dict[str, int]       # how many names were left out, by reason
    warnings: tuple[str, ...]     # a line for each folder that could not be read, each damaged container
    scopes: tuple[str, ...]       # beginnings of uris: all that begins so was listed
    whole: tuple[str, ...] = ()   # containers all of whose members were listed

    def skipped_line(self) -> str:
        """What was left out, in one line for the user; empty if nothing was."""
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))


@dataclass(frozen=True, slots=True)
class Rules:
    """What is listed of an INPUT.

    output: the output's `Storage.root`, which is left out where it lies inside INPUT; "" for none.
    all_files: take hidden names and every extension. A manifest's rows and single files are never filtered, and what
    a glob matches not by extension if the glob names one.
    parquet: where the images of Parquet files are; None takes a single Parquet file for a manifest, others not at all.
    """

    output: str = ""
    all_files: bool = False
    parquet: ParquetColumns | None = None
    options: StoreOptions = FROM_ENVIRONMENT

    def takes(self, relative: str) -> str | None:
        """Why a name found in a folder or under a prefix is left out; None if it is not."""
        reason = skip_reason(relative, self.all_files)
        return None if reason == OTHER_EXTENSION and is_container(relative, self.parquet) else reason

    def takes_matched(self, glob: Glob, name: str) -> str | None:
        """The same for what a glob matches."""
        if self.all_files or glob.names_extension or may_be_image(name) or is_container(name, self.parquet):
            return None
        return OTHER_EXTENSION


def list_inputs(inputs: Sequence[str], add: Callable[[pa.Table], None], rules: Rules) -> Listing:
    """List INPUTs, each a folder, a file, a glob, a manifest, a container, a bucket prefix, or one object.

    inputs: without query parameters; `uris.parse_input_uri` takes them off, into `rules.options`.
    add: gets tables of `schemas.LISTING` as they are found, in the order of listing, duplicates and all.
    Raises InputError where there is nothing to read in one of them.
    """
    rows = _Rows(add, rules)
    kinds = []
    for each in inputs:
        before = rows.count
        kinds.append(_list_input(each, rules, rows))
        rows.finish()
        if rows.count == before:
            raise InputError(_nothing_in(each, kinds[-1], rows))
    return Listing(tuple(kinds), dict(rows.skipped), tuple(rows.warnings), tuple(rows.scopes), tuple(rows.whole))


def _list_input(uri: str, rules: Rules, rows: _Rows) -> InputKind:
    scheme = uri_scheme(uri)
    if scheme is None or scheme == "file":
        return _list_local(absolute(local_path(uri) if scheme else uri), rules, rows)
    if scheme not in REMOTE_SCHEMES:
        raise InputError(unsupported(uri))
    check_remote(uri)
    if scheme in BUCKET_SCHEMES:
        return _list_bucket(uri, rules, rows)
    return _one(uri, InputKind.OBJECT, rules, rows, rows.add)


@dataclass(slots=True)
class _Rows:
    """Rows as they are found, handed on in chunks: an object a row would cost gigabytes for millions."""

    hand_on: Callable[[pa.Table], None]
    rules: Rules
    count: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
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
            self.finish()

    def add_local(self, path: str, found: os.stat_result | None) -> None:
        if found is None:
            self.add(local_uri(path))
        else:
            mtime_us = found.st_mtime_ns // 1000
            self.add(local_uri(path), found.st_size, None, mtime_us if abs(mtime_us) < _MAX_MTIME_US else None)

    def add_manifest(self, pieces: Generator[tuple[pa.Table, int], None, None]) -> None:
        with closing(pieces):       # Arrow's CSV reader has a thread of its own, at which Python aborts when it exits
            for table, nameless in pieces:
                self._hand_on(table)
                if nameless:
                    self.skipped[NO_URI] += nameless

    def finish(self) -> None:
        """Hand on what waits."""
        columns = {
            "uri": pa.array(self._uris, pa.string()),
            "container": pa.nulls(len(self._uris), pa.string()),
            "offset": pa.nulls(len(self._uris), pa.int64()),
            "size": pa.array(self._sizes, pa.int64()),
            "etag": pa.array(self._etags, pa.string()),
            "mtime": pa.array(self._mtimes, TIMESTAMP),
        }
        for column in (self._uris, self._sizes, self._etags, self._mtimes):
            column.clear()
        self._hand_on(pa.table(columns, schema=LISTING))

    def _hand_on(self, table: pa.Table) -> None:
        """Hand rows on, members in place of containers."""
        ending = r"\.(?:tar|parquet)" if self.rules.parquet else r"\.tar"
        maybe = pc.match_substring_regex(table["uri"], rf"(?i){ending}$|^https?://[^?]*{ending}\?")
        is_whole = pc.and_(pc.is_null(table["container"]), maybe)
        containers = table.filter(is_whole)
        plain = table.filter(pc.invert(is_whole)) if len(containers) else table
        if len(plain):
            self.count += len(plain)
            self.hand_on(plain)
        if not len(containers):
            return
        rules = self.rules

        def members(container: dict[str, Any]) -> Members:
            return list_members(container, rules.options, rules.parquet, rules.all_files)

        listed = containers.to_pylist()
        with ThreadPoolExecutor(_INDEX_THREADS, "index") as threads:
            for container, found in zip(listed, threads.map(members, listed), strict=True):
                self.skipped += found.skipped
                if found.damage:
                    self.warnings.append(found.damage)
                else:
                    self.whole.append(container["uri"])
                if len(found.rows):
                    self.count += len(found.rows)
                    self.hand_on(found.rows)
        self.scopes += [f"{container['uri']}#" for container in listed]


def _one(path: str, kind: InputKind, rules: Rules, rows: _Rows, add: Callable[[str], None]) -> InputKind:
    """A single file or object: one row, or a manifest's or a container's many."""
    refuse_compressed(path)
    if is_container(path, rules.parquet):
        kind = InputKind.CONTAINER
    elif is_manifest(path):
        rows.add_manifest(read_manifest(path, rules.options))
        return InputKind.MANIFEST
    add(path)
    return kind


# --- local


def _list_local(path: str, rules: Rules, rows: _Rows) -> InputKind:
    try:
        found = _stat(path)
    except PermissionError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if found and stat.S_ISDIR(found.st_mode):
        if _identity(path) == _identity(rules.output):
            raise InputError(f"INPUT and OUTPUT are the same folder, {path}: give OUTPUT one of its own")
        if is_manifest_folder(path) and rules.parquet is None:
            rows.add_manifest(read_manifest_folder(path, rules.options))
            return InputKind.MANIFEST
        _list_folder(path, rules, rows)
        return InputKind.FOLDER
    if found or os.path.lexists(path):
        return _one(path, InputKind.FILE, rules, rows, lambda name: rows.add_local(name, found))
    if literal_beginning(path) is None:
        raise InputError(f"no such file or folder: {path}")
    _list_glob(Glob(path, hidden=rules.all_files), rules, rows)
    return InputKind.GLOB


def _list_folder(folder: str, rules: Rules, rows: _Rows) -> None:
    def enter(name: str, _: str) -> bool:
        if rules.all_files or not is_hidden(name):
            return True
        rows.skipped[HIDDEN] += 1
        return False

    for path, entry in _walk(folder, rules.output, rows, enter):
        if reason := rules.takes(entry.name):
            rows.skipped[reason] += 1
        else:
            rows.add_local(path, _entry_stat(entry))
    rows.scopes.append(local_uri(folder.rstrip("/") + "/"))


def _list_glob(glob: Glob, rules: Rules, rows: _Rows) -> None:
    base = glob.beginning.rpartition("/")[0] or "/"
    if not Path(base).is_dir():
        return
    for path, entry in _walk(base, rules.output, rows, lambda _, folder: glob.may_hold(folder)):
        if glob.matches(path):
            if reason := rules.takes_matched(glob, entry.name):
                rows.skipped[reason] += 1
            else:
                rows.add_local(path, _entry_stat(entry))


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


# --- buckets


def _list_bucket(uri: str, rules: Rules, rows: _Rows) -> InputKind:
    bucket_uri, key = split_uri(uri)
    options, output = rules.options, rules.output
    if key and not key.endswith("/") and (found := _head(bucket_uri, key, options)):
        return _one(uri, InputKind.OBJECT, rules, rows, lambda name: rows.add(name, *found[1:]))
    folder = key.rstrip("/") + "/" if key.strip("/") else key
    is_glob = literal_beginning(key) is not None and next(list_objects(bucket_uri, folder, options), None) is None
    if f"{bucket_uri}/{folder}".rstrip("/") == output:
        raise InputError(f"INPUT and OUTPUT are the same place, {output}: give OUTPUT a prefix of its own")
    if is_manifest_folder(folder.rstrip("/")) and not is_glob and rules.parquet is None:
        rows.add_manifest(read_manifest_folder(f"{bucket_uri}/{folder}".rstrip("/"), options))
        return InputKind.MANIFEST
    glob = Glob(key, hidden=rules.all_files) if is_glob else None
    top = glob.beginning if glob else folder
    output_folder = output.removeprefix(bucket_uri + "/") + "/" if output.startswith(bucket_uri + "/") else None
    if output_folder and not output_folder.startswith(top.rpartition("/")[0]):
        output_folder = None   # INPUT lies inside OUTPUT, not the other way round
    for found_key, size, etag, mtime in list_objects(bucket_uri, top, options):
        if glob and not glob.matches(found_key):
            continue
        if found_key.endswith("/") and not size:
            reason = MARKER
        elif output_folder and found_key.startswith(output_folder):
            reason = OUTPUT
        else:
            reason = rules.takes_matched(glob, found_key) if glob else rules.takes(found_key[len(folder) :])
        if reason:
            rows.skipped[reason] += 1
        else:
            rows.add(f"{bucket_uri}/{found_key}", size, etag, mtime)
    if not glob:
        rows.scopes.append(f"{bucket_uri}/{folder}")
    return InputKind.GLOB if glob else InputKind.PREFIX


def _head(bucket_uri: str, key: str, options: StoreOptions) -> Found | None:
    """The object of exactly this key; None if there is none."""
    if bucket_uri.startswith("s3://"):   # of all keys that begin so it is the first
        first = next(list_objects(bucket_uri, key, options), None)
        return first if first and first[0] == key else None
    with explained(bucket_uri):
        try:
            meta = obstore.head(open_bucket(bucket_uri, options), key)
        except FileNotFoundError:
            return None
    return meta["path"], meta["size"], plain_etag(meta["e_tag"]), meta["last_modified"]


# --- messages


def _nothing_in(inputs: str, kind: InputKind, rows: _Rows) -> str:
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(rows.skipped.items()))
    left_out = f" ({skipped})" if skipped else ""
    fix = "check the path"
    if OTHER_EXTENSION in rows.skipped or HIDDEN in rows.skipped:
        fix = "--all-files takes hidden names and every extension"
    elif kind is InputKind.PREFIX and not inputs.endswith("/"):
        fix = f"check the prefix, which is taken as a folder; {inputs}* takes all keys that begin so"
    return f"no images found in the {kind} {inputs}{left_out}: {fix}"
