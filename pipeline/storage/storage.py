"""Where the output lies: a folder on disk or a prefix in a bucket, behind the same few operations.

Paths are relative to the output and written with "/". Whole files are written at once; one is either there as a whole
or not at all, and what was written or deleted stays so after a crash. Every failure is an OSError that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore

from pipeline.storage.objectstore import (
    BUCKET_SCHEMES,
    FROM_ENVIRONMENT,
    RangeReader,
    StoreOptions,
    UriError,
    is_addressable,
    open_bucket,
    split_uri,
    uri_scheme,
)

_LOCK = ".lock"
_DELETED_AT_ONCE = 1000       # objects a request
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.facelake-tmp")


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


def open_storage(uri: str, options: StoreOptions = FROM_ENVIRONMENT) -> Storage:
    """The storage at a local path, `file://…`, `s3://bucket/prefix` or `gs://bucket/prefix`; nothing is created yet.

    Raises UriError for anything else, and for a prefix that object-store clients do not take.
    """
    scheme = uri_scheme(uri)
    if scheme == "file":
        return LocalStorage(unquote(uri.split("://", 1)[1]))
    if scheme is None:
        return LocalStorage(uri)
    if scheme not in BUCKET_SCHEMES:
        raise UriError(f"cannot write to {uri!r}: give a local folder, s3://bucket/prefix or gs://bucket/prefix")
    bucket_uri, prefix = split_uri(uri)
    prefix = prefix.rstrip("/")
    if prefix and not is_addressable(prefix):
        raise UriError(f"cannot write to {uri!r}: no empty, '.' or '..' parts and no control characters, please")
    return ObjectStorage(bucket_uri, prefix, options)


class LocalStorage:
    """A folder on disk."""

    def __init__(self, folder: str) -> None:
        self._root = os.path.abspath(folder)   # workers run in other folders than the driver  # noqa: PTH100

    @property
    def root(self) -> str:
        return self._root

    def list(self, folder: str) -> list[StoredFile]:
        found = []
        try:
            with os.scandir(self._at(folder)) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):   # removed meanwhile
                        if entry.is_file() and entry.name != _LOCK and not _TEMPORARY.fullmatch(entry.name):
                            stat = entry.stat()
                            mtime = datetime.fromtimestamp(stat.st_mtime, UTC)
                            found.append(StoredFile(_join(folder, entry.name), stat.st_size, mtime))
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
        with _naming(target):
            _make_folder(target.parent)
            try:
                with temporary.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(target.parent)

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
            _sync_folder(folder)

    def delete_tree(self, folder: str) -> None:
        target = self._at(folder)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(target)
            _sync_folder(target.parent)

    def clean_temporary(self) -> None:
        # Under the lock no `create` or `replace` (a heartbeat) has a temporary file of its own.
        with self._locked():
            root = Path(self._root)
            for folder in [root, *(entry for entry in root.iterdir() if entry.is_dir())]:
                with contextlib.suppress(PermissionError):     # of folders that are not ours, such as lost+found
                    for name in os.listdir(folder):   # noqa: PTH208  (names alone: the folder may hold many)
                        if _TEMPORARY.fullmatch(name):
                            (folder / name).unlink(missing_ok=True)

    def _at(self, path: str) -> Path:
        return Path(self._root, path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock against other processes and threads. The kernel drops it with its process."""
        import fcntl

        lock = self._at(_LOCK)
        with contextlib.ExitStack() as opened:
            with _naming(lock):
                _make_folder(lock.parent)
                file = opened.enter_context(lock.open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


class ObjectStorage:
    """A prefix in a bucket."""

    def __init__(self, bucket_uri: str, prefix: str, options: StoreOptions) -> None:
        self._bucket_uri = bucket_uri
        self._prefix = prefix
        self._options = options

    @property
    def root(self) -> str:
        return f"{self._bucket_uri}/{self._prefix}".rstrip("/")

    def list(self, folder: str) -> list[StoredFile]:
        key = self._key(folder)
        with self._naming(folder):
            objects = obstore.list_with_delimiter(self._bucket, key or None)["objects"]
        return [
            StoredFile(_join(folder, meta["path"].rpartition("/")[2]), meta["size"], meta["last_modified"])
            for meta in sorted(objects, key=lambda meta: meta["path"])
            if meta["path"] != key   # the empty marker of the folder itself, which web consoles make
        ]

    def read(self, path: str) -> bytes:
        return self.read_version(path)[0]

    def read_version(self, path: str) -> tuple[bytes, FileVersion]:
        with self._naming(path):
            found = obstore.get(self._bucket, self._key(path))
            return bytes(found.bytes()), _object_version(found.meta)

    def open(self, path: str) -> BinaryIO:
        with self._naming(path):
            size = obstore.head(self._bucket, self._key(path))["size"]
        return RangeReader.buffered(partial(self.read_range, path), size)

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to before `end` of the file."""
        with self._naming(path):
            return bytes(obstore.get_range(self._bucket, self._key(path), start=start, end=end))

    def write(self, path: str, content: bytes) -> None:
        with self._naming(path):
            # One PUT: a multipart upload that is cut off leaves parts that are paid for and seen nowhere.
            obstore.put(self._bucket, self._key(path), content, use_multipart=False)

    def create(self, path: str, content: bytes) -> FileVersion | None:
        try:
            with self._naming(path):
                return _object_version(obstore.put(self._bucket, self._key(path), content, mode="create"))
        except FileExistsError:
            return None

    def replace(self, path: str, content: bytes, version: FileVersion) -> FileVersion | None:
        try:
            with self._naming(path):
                return _object_version(obstore.put(self._bucket, self._key(path), content, mode=version.token))
        except (FileExistsError, FileNotFoundError):
            return None

    def delete(self, *paths: str) -> None:
        for start in range(0, len(paths), _DELETED_AT_ONCE):
            keys = [self._key(path) for path in paths[start : start + _DELETED_AT_ONCE]]
            with contextlib.suppress(FileNotFoundError), self._naming(paths[start]):
                obstore.delete(self._bucket, keys if len(keys) > 1 else keys[0])

    def delete_tree(self, folder: str) -> None:
        with self._naming(folder):
            for metas in obstore.list(self._bucket, self._key(folder) or None):
                obstore.delete(self._bucket, [meta["path"] for meta in metas])

    def clean_temporary(self) -> None:
        """Nothing to do: one PUT leaves nothing half-written."""

    @property
    def _bucket(self) -> ObjectStore:
        return open_bucket(self._bucket_uri, self._options)

    def _key(self, path: str) -> str:
        return _join(self._prefix, path)

    @contextlib.contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Turn the client's errors into OSErrors of the matching kind."""
        name = f"{self.root}/{path}"
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, f"no such object or bucket ({_first_line(error)})", name) from error
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(errno.EEXIST, _first_line(error), name) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise PermissionError(errno.EACCES, f"access denied ({_first_line(error)})", name) from error
        except BaseError as error:
            raise OSError(errno.EIO, _first_line(error), name) from error


def _object_version(meta: Any) -> FileVersion:
    """What obstore compares by: the etag on S3, the generation ("version") on GCS."""
    return FileVersion({name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None})


def _join(folder: str, name: str) -> str:
    return "/".join(part for part in (folder.strip("/"), name) if part)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors: a full disk gives no name, others that of the temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make names in the folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
