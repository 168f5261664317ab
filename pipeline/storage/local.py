"""A storage on a local disk."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pipeline.storage.base import FileVersion, StoredFile, join
from pipeline.storage.file_system import lock_file_of, locked, rename_onto, sync_file, sync_folder
from pipeline.storage.uris import absolute

_LOCK = ".lock"
_LOCKS = {_LOCK, lock_file_of(Path(_LOCK)).name}
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.facelake-tmp")


class LocalStorage:
    """A folder on disk."""

    def __init__(self, folder: str) -> None:
        self._root = absolute(folder)   # workers have another working directory than the driver
        self._lacks: set[str] = set()

    @property
    def root(self) -> str:
        return self._root

    def weaknesses(self) -> Sequence[str]:
        return [f"the file system of {self._root} is weak: {lack}" for lack in sorted(self._lacks)]

    def list(self, folder: str) -> list[StoredFile]:
        found = []
        try:
            with os.scandir(self._at(folder)) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):   # deleted since the scan began
                        if entry.is_file() and entry.name not in _LOCKS and not _TEMPORARY.fullmatch(entry.name):
                            stat = entry.stat()
                            mtime = datetime.fromtimestamp(stat.st_mtime, UTC)
                            found.append(StoredFile(join(folder, entry.name), stat.st_size, mtime))
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda file: file.path)

    def read(self, path: str) -> bytes:
        return self._at(path).read_bytes()

    def read_version(self, path: str) -> tuple[bytes, FileVersion]:
        content = self.read(path)
        return content, FileVersion(content)

    def open(self, path: str) -> BinaryIO:
        return self._at(path).open("rb")

    def write(self, path: str, content: bytes) -> None:
        target = self._at(path)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.facelake-tmp")
        with _named_errors(target):
            self._make_folder(target.parent)
            try:
                with temporary.open("xb") as file:
                    file.write(content)
                    file.flush()
                    sync_file(file.fileno(), self._lacks)
                rename_onto(temporary, target, self._lacks)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(target.parent, self._lacks)

    def create(self, path: str, content: bytes) -> FileVersion | None:
        with self._locked():
            if self._at(path).exists():
                return None
            self.write(path, content)
            return FileVersion(content)

    def replace(self, path: str, content: bytes, version: FileVersion) -> FileVersion | None:
        with self._locked():
            try:
                if self.read(path) != version.token:
                    return None
            except FileNotFoundError:
                return None
            self.write(path, content)
            return FileVersion(content)

    def delete(self, *paths: str) -> None:
        changed = set()
        for target in map(self._at, paths):
            with contextlib.suppress(FileNotFoundError):
                target.unlink()
                changed.add(target.parent)
        for folder in changed:
            sync_folder(folder, self._lacks)

    def delete_tree(self, folder: str) -> None:
        target = self._at(folder)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(target)
            sync_folder(target.parent, self._lacks)

    def clean_temporary(self, *, deep: bool = False) -> None:
        # With the lock held no `create` or `replace` (a heartbeat) has a temporary file.
        with self._locked():
            root = Path(self._root)
            below = (entry for entry in root.iterdir() if entry.is_dir())
            folders = (Path(folder) for folder, _, _ in os.walk(root)) if deep else iter([root, *below])
            for folder in folders:
                with contextlib.suppress(PermissionError):     # lost+found and the like
                    for name in os.listdir(folder):   # noqa: PTH208  (iterdir makes a Path of every name)
                        if _TEMPORARY.fullmatch(name):
                            (folder / name).unlink(missing_ok=True)

    def _at(self, path: str) -> Path:
        return Path(self._root, path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock against other processes and threads."""
        lock = self._at(_LOCK)
        with contextlib.ExitStack() as held:
            with _named_errors(lock):
                self._make_folder(lock.parent)
                held.enter_context(locked(lock, self._lacks))
            yield

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent, self._lacks)


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Put the file's name into errors: those of a full disk have none, others have the temporary file's."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
