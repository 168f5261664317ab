"""What an entry of a list of images means: people write names with spaces, backslashes and comments around them."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable

from pipeline.input.names import IMAGE_EXTENSIONS, InputError, extension
from pipeline.storage.uris import is_local, local_uri, uri_scheme


def looks_like_an_image(entry: str) -> bool:
    """Whether this is the name of an image, or a URI."""
    return extension(entry) in IMAGE_EXTENSIONS or uri_scheme(entry) is not None


def people_name(entry: str, exists: Callable[[str], bool]) -> str | None:
    """The name that an entry of a text list means; None for a comment.

    What exists under that very name is meant so. Else a line that begins with "#" is a comment, and spaces around a
    URI, or around the name of a file that exists, are none of it.
    """
    stripped = entry.strip()
    if (entry == stripped and not entry.startswith("#")) or exists(entry):
        return entry
    if stripped.startswith("#"):
        return None
    return stripped if uri_scheme(stripped) is not None or exists(stripped) else entry


def local_name(entry: str, exists: Callable[[str], bool]) -> str:
    """A relative or absolute path as it is on this system. Raises InputError for a path with a drive of Windows."""
    has_drive = re.match(r"[A-Za-z]:[\\/]|\\\\", entry)
    if not (has_drive or "\\" in entry) or exists(entry):
        return entry
    if has_drive:
        raise InputError(f"{entry!r} is a path of Windows: write where the file is on this machine")
    with_slashes = entry.replace("\\", "/")
    return with_slashes if exists(with_slashes) else entry


def valid_name(name: str, folder: str, exists: Callable[[str], bool]) -> str:
    """The name as it is, with spaces, quotes and commas.

    One that is not UTF-8 is a file:// URI of its bytes, or what they mean on Windows if that exists. Names in buckets
    are always UTF-8.
    """
    if name.isascii() or local_uri(name) == name:
        return name
    meant = os.fsencode(name).decode("cp1252", "replace")
    if exists(meant) or uri_scheme(name) is not None or not is_local(folder):
        return meant
    return local_uri(posixpath.join(folder, name))


def name_checker(folder: str) -> Callable[[str], bool]:
    """Whether a local file has a name; relative ones start at `folder`, which is a path or a URI."""

    def exists(name: str) -> bool:
        if uri_scheme(name) is not None or not (is_local(folder) or name.startswith("/")):
            return False
        return os.path.lexists(posixpath.join(folder, name))

    return exists
