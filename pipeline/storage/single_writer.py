"""A storage without conditional writes, for a user who says that nobody else writes there (`--single-writer`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from pipeline.storage.base import FileVersion, Storage, StoredFile


class SingleWriterStorage:
    """A storage whose `create` and `replace` look first and then write. Two writers could both succeed."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @property
    def root(self) -> str:
        return self._storage.root

    def weaknesses(self) -> Sequence[str]:
        return self._storage.weaknesses()

    def list(self, folder: str) -> list[StoredFile]:
        return self._storage.list(folder)

    def read(self, path: str) -> bytes:
        return self._storage.read(path)

    def read_version(self, path: str) -> tuple[bytes, FileVersion]:
        content = self._storage.read(path)
        return content, FileVersion(content)

    def open(self, path: str) -> BinaryIO:
        return self._storage.open(path)

    def write(self, path: str, content: bytes) -> None:
        self._storage.write(path, content)

    def create(self, path: str, content: bytes) -> FileVersion | None:
        try:
            self._storage.read(path)
        except FileNotFoundError:
            self._storage.write(path, content)
            return FileVersion(content)
        return None

    def replace(self, path: str, content: bytes, version: FileVersion) -> FileVersion | None:
        try:
            if self._storage.read(path) != version.token:
                return None
        except FileNotFoundError:
            return None
        self._storage.write(path, content)
        return FileVersion(content)

    def delete(self, *paths: str) -> None:
        self._storage.delete(*paths)

    def delete_tree(self, folder: str) -> None:
        self._storage.delete_tree(folder)

    def clean_temporary(self, *, deep: bool = False) -> None:
        self._storage.clean_temporary(deep=deep)
