"""Names in inputs: extensions, hidden names, globs."""

from __future__ import annotations

import fnmatch
import re

from pipeline.errors import UserError
from pipeline.storage.uris import is_http

# What the decoder reads, in every spelling. Raw camera files are not listed: they usually have a JPEG beside them.
IMAGE_EXTENSIONS = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "jfi", "jif", "png", "apng", "webp", "bmp", "dib", "tif", "tiff", "gif",
    "heic", "heif", "hif", "avif", "avifs",
})  # fmt: skip

# Reasons to skip a name. The user sees them after a number: "3 hidden".
OTHER_EXTENSION = "with another extension"
HIDDEN = "hidden"
MARKER = "directory markers"
OUTPUT = "of the output itself"

_WILDCARD = re.compile(r"[*?\[]")


class InputError(UserError):
    """INPUT cannot be listed, or holds nothing to read."""


def extension(name: str) -> str:
    """The extension in lower case; "" for none. "2024.03" and "st. mary" have none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if stem and dot and suffix.isalnum() and not suffix.isdigit() else ""


def uri_extension(uri: str) -> str:
    """The same for a path or a URI: the query of an http(s) URI is not part of the name."""
    return extension(uri.split("?")[0] if is_http(uri) else uri)


def may_be_image(name: str) -> bool:
    """Whether the name has an image extension or none."""
    return extension(name) in ("", *IMAGE_EXTENSIONS)


def is_hidden(name: str) -> bool:
    """Whether one part of a path is hidden. "." and ".." are not: keys of object stores may contain them."""
    return name.startswith(".") and name not in (".", "..")


def skip_reason(relative: str, all_files: bool) -> str | None:
    """Why a name in a folder, a prefix or a tar is skipped, by its path in there; None if it is listed."""
    if all_files:
        return None
    if any(map(is_hidden, relative.split("/"))):
        return HIDDEN
    return None if may_be_image(relative) else OTHER_EXTENSION


class Glob:
    """A pattern for whole paths: `*`, `?` and `[…]` match within one part, `**` matches any number of parts.

    Wildcards match hidden names only with `hidden`, or if that part of the pattern begins with a dot.
    """

    def __init__(self, pattern: str, *, hidden: bool) -> None:
        self._hidden = hidden
        self._parts = pattern.split("/")
        self._regexes = [re.compile(fnmatch.translate(part)) for part in self._parts]
        self.beginning = literal_beginning(pattern) or ""

    def matches(self, path: str) -> bool:
        """Whether the path matches."""
        return self._matches_from(path.split("/"), 0)

    def may_match_below(self, folder: str) -> bool:
        """Whether a path below the folder may match."""
        names = folder.split("/")
        for i, name in enumerate(names):
            if i < len(self._parts) and self._parts[i] == "**":
                return all(self._is_visible(below) for below in names[i:])
            if i >= len(self._parts) or not self._matches_part(i, name):
                return False
        return len(names) < len(self._parts)

    @property
    def names_extension(self) -> bool:
        """Whether the pattern names an extension: `*.dat` and `*.jp*g` do, `*` and `*.*` do not."""
        _, dot, suffix = self._parts[-1].rpartition(".")
        return bool(dot and re.sub(r"[*?\[\]!]", "", suffix))

    def _matches_from(self, names: list[str], first_part: int) -> bool:
        if first_part == len(self._parts):
            return not names
        if not names:      # also for "**" at the end: "x/**" matches what is below the folder x, not a file x
            return False
        if self._parts[first_part] != "**":
            return self._matches_part(first_part, names[0]) and self._matches_from(names[1:], first_part + 1)
        for skipped in range(len(names) + 1):
            if self._matches_from(names[skipped:], first_part + 1):
                return True
            if skipped < len(names) and not self._is_visible(names[skipped]):
                return False
        return False

    def _matches_part(self, i: int, name: str) -> bool:
        return bool(self._regexes[i].match(name)) and (self._parts[i].startswith(".") or self._is_visible(name))

    def _is_visible(self, name: str) -> bool:
        return self._hidden or not is_hidden(name)


def literal_beginning(pattern: str) -> str | None:
    """What comes before the first wildcard; None if there is no wildcard."""
    wildcard = _WILDCARD.search(pattern)
    return pattern[: wildcard.start()] if wildcard else None
