"""The interface of a storage.

Paths are relative to the storage's root and use "/". A file is written whole: it is there completely or not at all.
What was written or deleted stays so after a crash. Every failure is an OSError that names the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a storage."""

    path: str
    size: int         # bytes
    mtime: datetime   # UTC


@dataclass(frozen=True, slots=True)
class FileVersion:
    """A version of a file, for `Storage.replace`. Only the storage that returned it can compare it."""

    token: Any


class Storage(Protocol):
    """A folder of files. Can be pickled. Safe to use from several threads."""

    @property
    def root(self) -> str:
        """The place as users may see it: an absolute path, or a URI."""

    def weaknesses(self) -> Sequence[str]:
        """What this place was found to lack of all that makes an output safe, a line each."""

    def list(self, folder: str) -> list[StoredFile]:
        """The files directly in the folder, sorted by name, without temporary files. A missing folder is empty."""

    def read(self, path: str) -> bytes:
        """The content. Raises FileNotFoundError."""

    def read_version(self, path: str) -> tuple[bytes, FileVersion]:
        """The content and its version. Raises FileNotFoundError."""

    def open(self, path: str) -> BinaryIO:
        """The file, seekable, read in pieces. Raises FileNotFoundError."""

    def write(self, path: str, content: bytes) -> None:
        """Write the file; replaces an existing one."""

    def create(self, path: str, content: bytes) -> FileVersion | None:
        """Write the file if there is none, else return None. Of several callers at once exactly one succeeds."""

    def replace(self, path: str, content: bytes, version: FileVersion) -> FileVersion | None:
        """Write the file if it still has this version, else return None. Of several callers exactly one succeeds."""

    def delete(self, *paths: str) -> None:
        """Delete these files. Missing files are no error."""

    def delete_tree(self, folder: str) -> None:
        """Delete the folder with its content. A missing folder is no error."""

    def clean_temporary(self, *, deep: bool = False) -> None:
        """Delete half-written files of killed processes. Call it with the lease held, before the first write.

        deep: in all folders below, not only in those of an output.
        """


def join(folder: str, name: str) -> str:
    """`folder/name`; the name alone if folder is ""."""
    return "/".join(part for part in (folder.strip("/"), name) if part)
