"""The names of inputs: uris of local files, extensions, hidden names, globs."""

from __future__ import annotations

import fnmatch
import os
import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.errors import UserError

# What the decoder reads, in all its spellings. Raw camera files lie beside their JPEGs and are left out on purpose.
IMAGE_EXTENSIONS = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "jfi", "jif", "png", "apng", "webp", "bmp", "dib", "tif", "tiff", "gif",
    "heic", "heif", "hif", "avif", "avifs",
})  # fmt: skip

OTHER_EXTENSION = "with another extension"
HIDDEN = "hidden"
MARKER = "directory markers"
OUTPUT = "of the output itself"

_WILDCARD = re.compile(r"[*?\[]")


class InputError(UserError):
    """INPUT cannot be listed, or there is nothing in it; the message says what to do."""


def absolute(path: str) -> str:
    """The path from the root, with links not resolved."""
    return os.path.abspath(path)   # noqa: PTH100  (Path.resolve follows links)


def local_uri(path: str) -> str:
    """The uri of a local absolute path: itself, or `file://` with percent-encoded bytes where it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:   # Python has undecodable bytes of a name as lone surrogates
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def local_path(uri: str) -> str:
    """The local absolute path that a `file://` URI means, for `open`. Raises InputError for another machine's."""
    host, slash, path = uri.split("://", 1)[1].partition("/")
    if host not in ("", "localhost") or not slash:
        raise InputError(f"{uri!r} is not on this machine, or not an absolute path: file:///folder/name is the form")
    return os.fsdecode(unquote_to_bytes("/" + path))


def extension(name: str) -> str:
    """The extension in small letters, "" for none. What follows the dot in "2024.03" or "st. mary" is no file type."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if stem and dot and suffix.isalnum() and not suffix.isdigit() else ""


def may_be_image(name: str) -> bool:
    """Whether the name has an image extension or none."""
    return extension(name) in ("", *IMAGE_EXTENSIONS)


def is_hidden(name: str) -> bool:
    """Whether a part of a path is hidden. "." and ".." are not: they stand in keys of object stores as they are."""
    return name.startswith(".") and name not in (".", "..")


def skip_reason(relative: str, all_files: bool) -> str | None:
    """Why a name found in a folder or under a prefix is left out, by its path in there; None if it is not."""
    if all_files:
        return None
    if any(map(is_hidden, relative.split("/"))):
        return HIDDEN
    return None if may_be_image(relative) else OTHER_EXTENSION


class Glob:
    """A pattern for whole paths: `*`, `?` and `[…]` within one part, `**` for any number of parts.

    Wildcards match hidden names only if `hidden`, or where the part of the pattern begins with a dot itself.
    """

    def __init__(self, pattern: str, *, hidden: bool) -> None:
        self._hidden = hidden
        self._parts = pattern.split("/")
        self._regexes = [re.compile(fnmatch.translate(part)) for part in self._parts]
        self.beginning = literal_beginning(pattern) or ""

    def matches(self, path: str) -> bool:
        """Whether the path fits."""
        return self._fits(path.split("/"), 0)

    def may_hold(self, folder: str) -> bool:
        """Whether something in the folder or below may fit."""
        names = folder.split("/")
        for i, name in enumerate(names):
            if i < len(self._parts) and self._parts[i] == "**":
                return all(self._visible(below) for below in names[i:])
            if i >= len(self._parts) or not self._part_fits(i, name):
                return False
        return len(names) < len(self._parts)

    @property
    def names_extension(self) -> bool:
        """Whether the pattern says which extension: `*.dat` and `*.jp*g` do, `*` and `*.*` do not."""
        _, dot, suffix = self._parts[-1].rpartition(".")
        return bool(dot and re.sub(r"[*?\[\]!]", "", suffix))

    def _fits(self, names: list[str], first_part: int) -> bool:
        if first_part == len(self._parts):
            return not names
        if not names:      # also for "**" at the end: it matches what is in a folder, not the folder
            return False
        if self._parts[first_part] != "**":
            return self._part_fits(first_part, names[0]) and self._fits(names[1:], first_part + 1)
        for skipped in range(len(names) + 1):
            if self._fits(names[skipped:], first_part + 1):
                return True
            if skipped < len(names) and not self._visible(names[skipped]):
                return False
        return False

    def _part_fits(self, i: int, name: str) -> bool:
        return bool(self._regexes[i].match(name)) and (self._parts[i].startswith(".") or self._visible(name))

    def _visible(self, name: str) -> bool:
        return self._hidden or not is_hidden(name)


def literal_beginning(pattern: str) -> str | None:
    """What every path that fits begins with; None if there is no wildcard in it."""
    wildcard = _WILDCARD.search(pattern)
    return pattern[: wildcard.start()] if wildcard else None
