"""List INPUT, of whatever kind, as rows of the to-do.

The `uri` identifies an image: it is the same from a folder, a glob or a manifest. A local file has its absolute path,
with links not resolved; an object its raw key; a member of a container `<container>#<member>`. Only a local name that
is not UTF-8 is percent-encoded.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.input.buckets import existing_key, find_object, folder_key, list_objects
from pipeline.input.containers import (
    READ_ARCHIVES,
    UNREAD_ARCHIVE,
    Kind,
    Members,
    is_container,
    kind_at,
    list_members,
    name_pattern,
    refuse_unread,
    renamed_line,
)
from pipeline.input.folders import entry_stat, existing_beginning, identity, path_stat, walk
from pipeline.input.manifest import (
    check_remote,
    is_manifest,
    is_manifest_folder,
    read_manifest,
    read_manifest_folder,
)
from pipeline.input.names import (
    EXCLUDED,
    HIDDEN,
    IMAGE_EXTENSIONS,
    NOT_INCLUDED,
    OTHER_EXTENSION,
    SYSTEM,
    Glob,
    InputError,
    literal_beginning,
    uri_extension,
)
from pipeline.input.parquet_images import name_image_column
from pipeline.input.rows import listing_table
from pipeline.input.rules import PARQUET_FILE, Rules, Selection
from pipeline.storage.uris import (
    BUCKET_SCHEMES,
    REMOTE_SCHEMES,
    absolute,
    is_http,
    is_local,
    is_remote,
    local_path,
    local_uri,
    split_uri,
    unsupported,
    uri_scheme,
)

NO_URI = "manifest rows without a uri"

_INDEX_THREADS = 32       # each waits for its store most of the time
_WORD_IN_BRACKETS = re.compile(r"\[(?![!\]])[^\]\-]{2,}\]")      # "[2018]"; not "[0-9]", "[[]"
_SPREADSHEETS = ("xlsx", "xls", "ods", "numbers")
_FIRST_ROWS = 1_000       # one page of a bucket: `first_read` reads an image of it before the rest is listed
_CHUNK_ROWS = 50_000
_MAX_MTIME_US = 62_135_596_800_000_000   # from 1970 back to the year 1: Python reads no earlier time


class InputKind(StrEnum):
    """The kinds of INPUT."""

    FOLDER = "folder"
    FILE = "file"
    GLOB = "glob"
    MANIFEST = "manifest"
    CONTAINER = "container"
    PREFIX = "bucket prefix"
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Listing:
    """What is known of all INPUTs together, apart from the rows."""

    kinds: tuple[InputKind, ...]  # of each INPUT
    skipped: dict[str, int]       # how many names were skipped, by reason
    warnings: tuple[str, ...]     # one line for each unreadable folder, damaged container, column that is ignored
    scopes: tuple[str, ...]       # everything whose uri begins with one of these was listed
    whole: tuple[str, ...] = ()   # containers of which every member was listed

    def skipped_line(self) -> str:
        """The skipped names in one line for the user; "" for none."""
        return counts_line(self.skipped)


def counts_line(counts: Mapping[str, int]) -> str:
    """Counts as the user sees them: "3 hidden, 1 with another extension"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def list_inputs(inputs: Sequence[str], add: Callable[[pa.Table], None], rules: Rules) -> Listing:
    """List INPUTs. Each is a folder, a file, a glob, a manifest, a container, a bucket prefix or one object.

    inputs: without their query; `uris.parse_input_uri` puts it into `rules.options`.
    add: gets tables of `schemas.LISTING` in the order of listing, with duplicates.
    Raises UserError for an INPUT that cannot be listed or holds nothing to read.
    """
    rows = _Rows(add, rules)
    kinds = []
    for each in inputs:
        before, skipped = rows.count, rows.skipped.copy()
        rows.begin()
        kinds.append(_list_input(each, rules, rows))
        rows.flush()
        if rows.count == before:
            raise InputError(_nothing_in(each, kinds[-1], rows.skipped - skipped, rows))
        if rows.glob and (line := _wildcard_line(rows.glob, rows.top)):
            rows.warnings.append(line)
    if rows.renamed:
        rows.warnings.append(renamed_line(rows.renamed))
    return Listing(tuple(kinds), dict(rows.skipped), tuple(rows.warnings), tuple(rows.scopes), tuple(rows.whole))


def _list_input(uri: str, rules: Rules, rows: _Rows) -> InputKind:
    if is_local(uri):
        return _list_local(absolute(local_path(uri)), rules, rows)
    scheme = uri_scheme(uri)
    if scheme not in REMOTE_SCHEMES:
        raise InputError(unsupported(uri))
    check_remote(uri)
    if is_http(uri) and uri.split("?")[0].endswith("/"):
        raise InputError(f"{uri} is a folder of a web server, which cannot be listed; give a list of its images")
    if scheme in BUCKET_SCHEMES:
        return _list_bucket(uri, rules, rows)
    return _list_one(uri, InputKind.OBJECT, rules, rows, rows.add)


def _nothing_in(uri: str, kind: InputKind, skipped: Counter[str], rows: _Rows) -> str:
    left_out = f" ({counts_line(skipped)})" if skipped else ""
    fix = "check the path"
    if EXCLUDED in skipped or NOT_INCLUDED in skipped:
        fix = "check --exclude and --include"
    elif skipped.keys() & {OTHER_EXTENSION, HIDDEN, SYSTEM}:
        fix = "--all-files takes hidden names, those of other programs and every extension"
    elif PARQUET_FILE in skipped:
        fix = "--image-column names the column of their images"
    elif UNREAD_ARCHIVE in skipped:
        fix = f"unpack them; {READ_ARCHIVES} are read as they are"
    elif rows.glob:
        fix = _glob_fix(rows.glob, rows.top)
    elif kind is InputKind.PREFIX and not uri.endswith("/"):
        fix = f"check the prefix, which is read as a folder; {uri}* takes all keys that begin with it"
    return f"no images found in the {kind} {uri}{left_out}: {fix}"


def _glob_fix(glob: Glob, top: str) -> str:
    """What was read as a wildcard, and how to write it literally."""
    wild = [part for part in glob.wild_parts if literal_beginning(part) is not None]
    first = f"nothing matches {' and '.join(map(repr, wild))} below {top or '/'}"
    if not any(set(part) & set("[?") for part in wild):
        return f"{first}; check the path"
    return (
        f"{first}, where [, ? and * are wildcards. To mean the characters themselves, write [[], [?] and [*]: "
        f"{_literally(glob, top)!r}"
    )


def _wildcard_line(glob: Glob, top: str) -> str | None:
    """What to say of a word in brackets that matched other names; None if there is none."""
    for part in glob.wild_parts:
        word = _WORD_IN_BRACKETS.search(part)
        if word and len(set(word[0].casefold())) > 3:      # more than one letter: "[jJ]" means a wildcard
            return (
                f"nothing has the very name {part!r}, so {word[0]} is a wildcard there: any one of these characters. "
                f"To mean the characters themselves, write {_literally(glob, top)!r}"
            )
    return None


def _literally(glob: Glob, top: str) -> str:
    """The glob with its brackets and question marks taken literally."""
    return "/".join([top, *(part.replace("[", "[[]").replace("?", "[?]") for part in glob.wild_parts)])


@dataclass(slots=True)
class _Rows:
    """Collects rows and hands them on in chunks: a Python object for each row costs gigabytes for millions."""

    hand_on: Callable[[pa.Table], None]
    rules: Rules
    count: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    glob: Glob | None = None               # of the INPUT that is being listed
    top: str = ""                          # its path or URI, or that of the folder it is in
    _selection: Selection | None = None
    renamed: int = 0                       # images of Parquet files; see Members
    containers: set[str] = field(default_factory=set)    # whose names do not say so
    _uris: list[str] = field(default_factory=list)
    _sizes: list[int | None] = field(default_factory=list)
    _etags: list[str | None] = field(default_factory=list)
    _mtimes: list[int | datetime | None] = field(default_factory=list)   # an int is microseconds since 1970

    def add(
        self, uri: str, size: int | None = None, etag: str | None = None, mtime: int | datetime | None = None
    ) -> None:
        self._uris.append(uri)
        self._sizes.append(size)
        self._etags.append(etag)
        self._mtimes.append(mtime)
        if len(self._uris) >= (_CHUNK_ROWS if self.count else _FIRST_ROWS):
            self.flush()

    def add_local(self, path: str, found: os.stat_result | None) -> None:
        if found is None:
            self.add(local_uri(path))
        else:
            mtime_us = found.st_mtime_ns // 1000
            self.add(local_uri(path), found.st_size, None, mtime_us if abs(mtime_us) < _MAX_MTIME_US else None)

    def begin(self) -> None:
        """Forget the INPUT before."""
        self.glob, self.top, self._selection = None, "", None

    def select(self, top: str, glob: Glob | None = None) -> Selection:
        """The rule for names below `top`, and from now on for members of containers there."""
        self.glob, self.top = glob, top.rstrip("/")
        self._selection = Selection(self.rules, top, glob)
        return self._selection

    def skips_entry(self, uri: str, container: str | None = None) -> str | None:
        """Why an entry of a manifest or a single file is skipped: only by --exclude and --include."""
        assert self._selection is not None
        if container and uri != container:
            return self._selection.skips_entry(f"{self._below(container)}/{uri.removeprefix(f'{container}#')}")
        return self._selection.skips_entry(self._below(uri))

    def _below(self, uri: str) -> str:
        """The path below the INPUT, or the whole of one that is elsewhere."""
        path = local_path(uri) if is_local(uri) else uri
        return path.removeprefix(f"{self.top}/").lstrip("/")

    def add_manifest(self, pieces: Generator[tuple[pa.Table, int], None, None]) -> None:
        with closing(pieces):
            for table, without_uri in pieces:
                self._hand_on(self._chosen(table))
                if without_uri:
                    self.skipped[NO_URI] += without_uri

    def _chosen(self, table: pa.Table) -> pa.Table:
        """The rows of a manifest that --exclude and --include leave."""
        if not (self.rules.exclude or self.rules.include):
            return table
        reasons = [
            self.skips_entry(uri, container)
            for uri, container in zip(table["uri"].to_pylist(), table["container"].to_pylist(), strict=True)
        ]
        self.skipped.update(filter(None, reasons))
        return table.filter(pa.array([reason is None for reason in reasons], pa.bool_()))

    def flush(self) -> None:
        """Hand on the rows collected so far."""
        columns: dict[str, list[Any]] = {
            "uri": self._uris, "size": self._sizes, "etag": self._etags, "mtime": self._mtimes,
        }
        table = listing_table(columns)
        for column in columns.values():
            column.clear()
        self._hand_on(table)

    def _hand_on(self, table: pa.Table) -> None:
        """Hand rows on, with the members of a container in place of the container."""
        named_so = pc.match_substring_regex(table["uri"], name_pattern(self.rules.parquet))
        if self.containers:
            named_so = pc.or_(named_so, pc.is_in(table["uri"], pa.array(self.containers, pa.string())))
        # A manifest has an archive that could not be listed whole as a member of itself: it may be whole by now.
        of_itself = pc.fill_null(pc.equal(table["container"], table["uri"]), fill_value=False)
        is_whole = pc.or_(pc.and_(pc.is_null(table["container"]), named_so), of_itself)
        containers = table.filter(is_whole)
        plain = table.filter(pc.invert(is_whole)) if len(containers) else table
        self._refuse_parquet(plain)
        self._count(plain)
        if len(containers):
            self._add_members(containers.to_pylist())

    def _refuse_parquet(self, table: pa.Table) -> None:
        """Raises InputError for Parquet files whose column of images is not named, unless every file is taken."""
        if self.rules.parquet or self.rules.all_files:
            return
        ending = pc.match_substring_regex(table["uri"], r"(?i)[^/]\.parquet$")
        found = table.filter(pc.and_(pc.is_null(table["container"]), ending))["uri"]
        if len(found):
            raise InputError(name_image_column(found[0].as_py(), self.rules.options))

    def _add_members(self, containers: list[dict[str, Any]]) -> None:
        rules = self.rules
        selection = self._selection or Selection(rules, self.top)

        def members(container: dict[str, Any]) -> Members:
            skips = partial(selection.skips_member, self._below(container["uri"]))
            return list_members(container, rules.options, rules.parquet, skips, rules.kept)

        waiting: deque[tuple[str, Future[Members]]] = deque()
        with ThreadPoolExecutor(_INDEX_THREADS, "index") as threads:
            try:
                for container in containers:
                    waiting.append((container["uri"], threads.submit(members, container)))
                    if len(waiting) > 2 * _INDEX_THREADS:     # bounds the indexes that wait for their turn
                        self._add_found(*waiting.popleft())
                while waiting:
                    self._add_found(*waiting.popleft())
            finally:
                threads.shutdown(cancel_futures=True)
        self.scopes += [f"{container['uri']}#" for container in containers]

    def _add_found(self, uri: str, members: Future[Members]) -> None:
        found = members.result()
        self.skipped += found.skipped
        self.renamed += found.renamed
        if found.damage:
            self.warnings.append(found.damage)
        else:
            self.whole.append(uri)
        self._count(found.rows)

    def _count(self, table: pa.Table) -> None:
        if len(table):
            self.count += len(table)
            self.hand_on(table)


def _list_one(path: str, kind: InputKind, rules: Rules, rows: _Rows, add: Callable[[str], None]) -> InputKind:
    """A single file or object: one row, or the many of a manifest or a container."""
    rows.select(path.rpartition("/")[0])
    if uri_extension(path) in _SPREADSHEETS:
        raise InputError(f"{path} is a spreadsheet: save it as CSV")
    if is_container(path, rules.parquet):
        kind = InputKind.CONTAINER
    elif is_manifest(path):
        rows.add_manifest(read_manifest(path, rules.options, rules.uri_column, rows.warnings.append))
        return InputKind.MANIFEST
    elif uri_extension(path) not in IMAGE_EXTENSIONS:
        found = kind_at(path, rules.options)
        if found is None:
            refuse_unread(path)
        elif found is Kind.PARQUET and rules.parquet is None:
            raise InputError(name_image_column(path, rules.options))
        else:
            kind = InputKind.CONTAINER
            rows.containers.add(path if is_remote(path) else local_uri(path))
    if reason := rows.skips_entry(path):
        rows.skipped[reason] += 1
    else:
        add(path)
    return kind


# --- local


def _list_local(path: str, rules: Rules, rows: _Rows) -> InputKind:
    found, rest = _local_stat(path), ""
    if found is None and not os.path.lexists(path):
        beginning, rest = existing_beginning(path)
        if not rest:      # it is there in another Unicode form
            path, found = beginning, _local_stat(beginning)
    if found and stat.S_ISDIR(found.st_mode):
        if identity(path) == identity(rules.output):
            raise InputError(f"INPUT and OUTPUT are the same folder, {path}: choose another OUTPUT")
        if is_manifest_folder(path) and rules.parquet is None:
            rows.select(path)
            rows.add_manifest(read_manifest_folder(path, rules.options, rules.uri_column, rows.warnings.append))
            return InputKind.MANIFEST
        _list_folder(path, rules, rows)
        return InputKind.FOLDER
    if found and not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is neither a file nor a folder; write names from a pipe into a .txt file")
    if found or os.path.lexists(path):
        return _list_one(path, InputKind.FILE, rules, rows, lambda name: rows.add_local(name, found))
    if literal_beginning(rest) is None:
        raise InputError(f"no such file or folder: {path}; check the path: the part {beginning} exists")
    _list_glob(Glob(f"{beginning.rstrip('/')}/{rest}", hidden=rules.all_files, literal=beginning), rules, rows)
    return InputKind.GLOB


def _local_stat(path: str) -> os.stat_result | None:
    try:
        return path_stat(path)
    except PermissionError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def _list_folder(folder: str, rules: Rules, rows: _Rows) -> None:
    _walk_selected(folder, rows.select(folder), rules, rows)
    rows.scopes.append(local_uri(folder.rstrip("/") + "/"))


def _list_glob(glob: Glob, rules: Rules, rows: _Rows) -> None:
    base = glob.literal or "/"
    selection = rows.select(base, glob)
    if Path(base).is_dir():
        _walk_selected(base, selection, rules, rows, glob)


def _walk_selected(base: str, selection: Selection, rules: Rules, rows: _Rows, glob: Glob | None = None) -> None:
    """Add the files below a folder, those that the glob matches, without those that the selection skips."""
    start = len(base.rstrip("/")) + 1

    def enter(_: str, folder: str) -> bool:
        if glob and not glob.may_match_below(folder):
            return False
        reason = selection.skips_folder(folder[start:])
        if reason:
            rows.skipped[reason] += 1
        return reason is None

    for path, entry in walk(base, rules.output, enter, rows.skipped, rows.warnings):
        if glob and not glob.matches(path):
            continue
        if reason := selection.skips_file(path[start:]):
            rows.skipped[reason] += 1
        else:
            rows.add_local(path, entry_stat(entry))


# --- buckets


def _list_bucket(uri: str, rules: Rules, rows: _Rows) -> InputKind:
    bucket_uri, key = split_uri(uri)
    options = rules.options
    if key and not key.endswith("/") and (found := find_object(bucket_uri, key, options)):
        return _list_one(
            uri, InputKind.OBJECT, rules, rows, lambda name: rows.add(name, found.size, found.etag, found.mtime)
        )
    folder = folder_key(key)
    if f"{bucket_uri}/{folder}".rstrip("/") == rules.output:
        raise InputError(f"INPUT and OUTPUT are the same place, {rules.output}: choose another OUTPUT")
    may_be_spelt_otherwise = literal_beginning(key) is not None or not key.isascii()
    if may_be_spelt_otherwise and next(list_objects(bucket_uri, folder, options), None) is None:
        beginning, rest = existing_key(bucket_uri, key, options)
        if literal_beginning(rest) is not None:
            glob = Glob(beginning + rest, hidden=rules.all_files, literal=beginning)
            _list_keys(bucket_uri, folder_key(glob.literal), rules, rows, glob)
            return InputKind.GLOB
        if not rest and beginning != key:     # it is there in another Unicode form
            return _list_bucket(f"{bucket_uri}/{beginning}", rules, rows)
    if is_manifest_folder(folder.rstrip("/")) and rules.parquet is None:
        rows.select(f"{bucket_uri}/{folder}")
        manifest = f"{bucket_uri}/{folder}".rstrip("/")
        rows.add_manifest(read_manifest_folder(manifest, options, rules.uri_column, rows.warnings.append))
        return InputKind.MANIFEST
    _list_keys(bucket_uri, folder, rules, rows)
    rows.scopes.append(f"{bucket_uri}/{folder}")
    return InputKind.PREFIX


def _list_keys(bucket_uri: str, folder: str, rules: Rules, rows: _Rows, glob: Glob | None = None) -> None:
    skips = rules.key_rule(bucket_uri, folder, glob)
    rows.select(f"{bucket_uri}/{folder}", glob)
    for key, size, etag, mtime in list_objects(bucket_uri, glob.beginning if glob else folder, rules.options):
        if glob and not glob.matches(key):
            continue
        if reason := skips(key, size):
            rows.skipped[reason] += 1
        else:
            rows.add(f"{bucket_uri}/{key}", size, etag, mtime)
