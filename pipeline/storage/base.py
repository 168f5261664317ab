"""What a storage does, wherever its files lie.

Paths are relative to the output and written with "/". Whole files are written at once; one is either there as a whole
or not at all, and what was written or deleted stays so after a crash. Every failure is an OSError that names the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the output."""

    path: str
    size: int         # bytes
    mtime: datetime   # UTC


@dataclass(frozen=True, slots=True)
class FileVersion:
    """Which content a file had, for `replace`: comparable by the storage that gave it and by nobody else."""

    token: Any


class Storage(Protocol):
    """A folder of files. Safe to pickle and to use from threads."""

    @property
    def root(self) -> str:
        """Where it is, as the user may be shown it: an absolute path, or a URI."""

    def list(self, folder: str) -> list[StoredFile]:
        """The files directly in the folder, by name; none if there is no such folder. No temporary files."""

    def read(self, path: str) -> bytes:
        """The content. Raises FileNotFoundError."""

    def read_version(self, path: str) -> tuple[bytes, FileVersion]:
        """The content and which version of it that is. Raises FileNotFoundError."""

    def open(self, path: str) -> BinaryIO:
        """The file for reading in pieces, seekable. Raises FileNotFoundError."""

    def write(self, path: str, content: bytes) -> None:
        """Put the content there, in place of any other."""

    def create(self, path: str, content: bytes) -> FileVersion | None:
        """Put the content there if there is nothing; None if there is. Of callers at one time exactly one wins."""

    def replace(self, path: str, content: bytes, version: FileVersion) -> FileVersion | None:
        """Put the content there if that version still is; None if not. Of callers at one time exactly one wins."""

    def delete(self, *paths: str) -> None:
        """Remove these files; missing ones are fine."""

    def delete_tree(self, folder: str) -> None:
        """Remove the folder and all in it; a missing one is fine."""

    def clean_temporary(self) -> None:
        """Remove what killed processes left half-written. Call it under the lease and before writing."""


def join(folder: str, name: str) -> str:
    """`folder/name`; the name alone in the folder ""."""
    return "/".join(part for part in (folder.strip("/"), name) if part)
