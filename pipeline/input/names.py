"""Names in inputs: extensions, hidden names, Unicode forms, globs."""

from __future__ import annotations

import fnmatch
import glob
import re
import unicodedata

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
SYSTEM = "made by other programs (thumbnails, bins, caches, backups)"
EXCLUDED = "left out by --exclude"
NOT_INCLUDED = "not in --include"
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


def composed(text: str) -> str:
    """The text in the Unicode form NFC. macOS writes names as NFD: "é" is an "e" and an accent there."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def spellings(name: str) -> list[str]:
    """The name in every Unicode form in which it is found: as it is, NFC, NFD."""
    if name.isascii():
        return [name]
    return list(dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]))


class Glob:
    """A pattern for whole paths: `*`, `?` and `[…]` match within one part, `**` matches any number of parts.

    Wildcards match hidden names only with `hidden`, or if that part of the pattern begins with a dot. Names in another
    Unicode form match as well.
    literal: a folder at the beginning of the pattern that is taken literally, whatever characters are in its name.
    """

    def __init__(self, pattern: str, *, hidden: bool, literal: str = "") -> None:
        self._hidden = hidden
        self.literal = literal.rstrip("/")
        rest = pattern[len(self.literal) :]
        folders = self.literal.split("/") if self.literal else []
        self.wild_parts = (rest.removeprefix("/") if folders else rest).split("/")
        self._parts = [*map(glob.escape, folders), *self.wild_parts]
        self._regexes = [re.compile(fnmatch.translate(composed(part))) for part in self._parts]
        # A name in another Unicode form begins with the same ASCII characters.
        self.beginning = self.literal + re.split(r"[^\x00-\x7f]", composed(literal_beginning(rest) or ""))[0]

    def matches(self, path: str) -> bool:
        """Whether the path matches."""
        return self._matches_from(composed(path).split("/"), 0)

    def may_match_below(self, folder: str) -> bool:
        """Whether a path below the folder may match."""
        names = composed(folder).split("/")
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
