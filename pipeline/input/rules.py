"""Which names a listing skips, and why."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from pipeline.input.containers import UNREAD_ARCHIVE, is_container, is_unread_archive
from pipeline.input.indexes import KeptIndexes
from pipeline.input.names import (
    EXCLUDED,
    HIDDEN,
    MARKER,
    NOT_INCLUDED,
    OTHER_EXTENSION,
    OUTPUT,
    SYSTEM,
    Glob,
    composed,
    extension,
    is_hidden,
    may_be_image,
)
from pipeline.input.parquet_images import ParquetColumns
from pipeline.input.system_names import is_system_name
from pipeline.storage.uris import FROM_ENVIRONMENT, StoreOptions

PARQUET_FILE = "Parquet files without --image-column"

KeyRule = Callable[[str, int | None], str | None]   # of an object's key and size: why it is skipped; None if it is not

_CACHED_FOLDERS = 4096   # a listing goes folder by folder


@dataclass(frozen=True, slots=True)
class Rules:
    """What is listed of an INPUT.

    output: the output's `Storage.root`. It is skipped where it is inside INPUT; "" for none.
    all_files: list hidden names, names made by systems, and every extension. By these rules rows of a manifest and
    single files are never skipped. Matches of a glob are not skipped by extension if the glob names one.
    parquet: where the images in Parquet files are. With None a single Parquet file is a manifest, and others are
    skipped. kept: indexes of archives, kept by earlier runs.
    exclude: names that are skipped; a folder with all that is in it. include: if there are some, all others are.
    uri_column: of manifests; None takes one of the usual names.
    """

    output: str = ""
    all_files: bool = False
    parquet: ParquetColumns | None = None
    options: StoreOptions = FROM_ENVIRONMENT
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    kept: KeptIndexes | None = None
    uri_column: str | None = None

    def key_rule(self, bucket_uri: str, folder: str, glob: Glob | None = None) -> KeyRule:
        """The rule for the objects whose key begins with `folder`, or those that the glob matches."""
        output = self._output_in(bucket_uri, glob.beginning if glob else folder)
        selection = Selection(self, f"{bucket_uri}/{folder}", glob)

        def skips(key: str, size: int | None) -> str | None:
            if key.endswith("/") and not size:
                return MARKER
            if output and key.startswith(output):
                return OUTPUT
            return selection.skips(key[len(folder) :])

        return skips

    def _output_in(self, bucket_uri: str, beginning: str) -> str | None:
        """What the keys of the output begin with, if the output is in this bucket and INPUT is not inside it."""
        if not self.output.startswith(bucket_uri + "/"):
            return None
        prefix = self.output.removeprefix(bucket_uri + "/") + "/"
        return prefix if prefix.startswith(beginning.rpartition("/")[0]) else None


class Selection:
    """Which names below one INPUT are listed. All paths are relative to it.

    So an INPUT that lies in a folder which would be skipped is read. top: the path or URI of the INPUT; for a glob,
    what comes before its wildcards. glob: which names it matches is known already.
    """

    def __init__(self, rules: Rules, top: str, glob: Glob | None = None) -> None:
        top = top.rstrip("/")
        self._top_name = posixpath.basename(top)
        self._rules = rules
        self._glob = glob
        self._exclude = [Pattern(each, top) for each in rules.exclude]
        self._include = [Pattern(each, top) for each in rules.include]
        # What a pattern names itself is not skipped for being hidden or made by a system.
        parts = [part for each in self._include for part in each.parts] + (glob.wild_parts if glob else [])
        named = [part for part in parts if is_hidden(part) or is_system_name(part)]
        self._named = re.compile("|".join(map(fnmatch.translate, map(composed, named)))) if named else None
        self._skips_folders = lru_cache(_CACHED_FOLDERS)(self._skips_any_folder)

    def skips(self, path: str) -> str | None:
        """Why a file is skipped; None if it is listed."""
        folder = path.rpartition("/")[0]
        return (self._skips_folders(folder) if folder else None) or self.skips_file(path)

    def skips_folder(self, path: str) -> str | None:
        """Why a folder is skipped with all that is in it. The folders above it are not."""
        return self._skips_name(path, is_folder=True) or self._excludes(path)

    def skips_file(self, path: str) -> str | None:
        """Why a file is skipped whose folder is not."""
        reason = self._skips_name(path, is_folder=False) or self._excludes(path)
        if reason:
            return reason
        is_whole = is_container(path, self._rules.parquet)
        if self._include and not is_whole and not any(each.matches_within(path) for each in self._include):
            return NOT_INCLUDED
        if self._rules.all_files or is_whole or may_be_image(path) or self._names_extension(path):
            return None
        return other_extension(path)

    def skips_member(self, container: str, name: str) -> str | None:
        """Why a member of a container is skipped. The container's path counts as a folder of the member."""
        if reason := self._skipped_by_name(name):
            return reason
        paths = (name, posixpath.join(container, name))
        if any(each.matches_within(path) for each in self._exclude for path in paths):
            return EXCLUDED
        matching = [each for each in self._include for path in paths if each.matches_within(path)]
        if self._include and not matching:
            return NOT_INCLUDED
        named = any(each.names_extension for each in matching)
        return None if self._rules.all_files or may_be_image(name) or named else OTHER_EXTENSION

    def skips_entry(self, path: str) -> str | None:
        """Why an entry of a manifest or a single file is skipped: only by --exclude and --include."""
        if any(each.matches_within(path) for each in self._exclude):
            return EXCLUDED
        if not self._include or is_container(path, self._rules.parquet):
            return None
        return None if any(each.matches_within(path) for each in self._include) else NOT_INCLUDED

    def _skips_any_folder(self, folder: str) -> str | None:
        above = folder.rpartition("/")[0]
        return (self._skips_folders(above) if above else None) or self.skips_folder(folder)

    def _skipped_by_name(self, path: str) -> str | None:
        """Whether a part of the path is hidden or made by a system."""
        names = path.split("/")
        for i in range(len(names)):
            if reason := self._skips_name("/".join(names[: i + 1]), is_folder=i + 1 < len(names), member=True):
                return reason
        return None

    def _skips_name(self, path: str, *, is_folder: bool, member: bool = False) -> str | None:
        if self._rules.all_files:
            return None
        folder, _, name = path.rpartition("/")
        parent = folder.rpartition("/")[2] or self._top_name
        # A glob matches hidden names only if it names them. It says nothing of the members of an archive.
        hidden = is_hidden(name) and (member or not self._glob)
        if not hidden and not is_system_name(name, parent, is_folder=is_folder):
            return None
        if self._named and self._named.match(composed(name)):
            return None
        return HIDDEN if hidden else SYSTEM

    def _excludes(self, path: str) -> str | None:
        return EXCLUDED if any(each.matches(path) for each in self._exclude) else None

    def _names_extension(self, path: str) -> bool:
        if self._glob and self._glob.names_extension:
            return True
        return any(each.names_extension and each.matches_within(path) for each in self._include)


class Pattern:
    """A GLOB of --exclude and --include.

    Without "/" it matches a name in any folder; with "/" a path below INPUT, from its start; a whole path or URI that
    begins with INPUT means what is below. A name that is written exactly so matches too, whatever wildcards are in it.
    """

    def __init__(self, text: str, top: str) -> None:
        text = composed(text)
        top = composed(top)
        self._text = (text.removeprefix(top) if text.startswith(f"{top}/") else text).strip("/")
        self.parts = self._text.split("/")
        self._glob = Glob(self._text, hidden=True)
        self._name = re.compile(fnmatch.translate(self._text)) if len(self.parts) == 1 else None

    @property
    def names_extension(self) -> bool:
        """Whether the pattern names an extension."""
        return self._glob.names_extension

    def matches(self, path: str) -> bool:
        """Whether it matches this file or folder itself."""
        path = composed(path)
        if self._name:
            name = path.rpartition("/")[2]
            return name == self._text or bool(self._name.match(name))
        return path == self._text or self._glob.matches(path)

    def matches_within(self, path: str) -> bool:
        """Whether it matches the path or a folder above it."""
        names = path.split("/")
        return any(self.matches("/".join(names[: i + 1])) for i in range(len(names)))


def other_extension(name: str) -> str:
    """Why a name with no image's extension is skipped."""
    if extension(name) == "parquet":
        return PARQUET_FILE
    return UNREAD_ARCHIVE if is_unread_archive(name) else OTHER_EXTENSION
