"""A storage in a bucket."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore

from pipeline.errors import first_line
from pipeline.storage.base import FileVersion, StoredFile, join
from pipeline.storage.clients import open_bucket
from pipeline.storage.files import RangeReader
from pipeline.storage.uris import StoreOptions

_DELETED_AT_ONCE = 1000       # objects in one request
_CONDITIONAL_TRIES, _RETRY_S = 4, 0.2


class ObjectStorage:
    """A prefix in a bucket."""

    def __init__(self, bucket_uri: str, prefix: str, options: StoreOptions) -> None:
        self._bucket_uri = bucket_uri
        self._prefix = prefix
        self._options = options

    @property
    def root(self) -> str:
        return f"{self._bucket_uri}/{self._prefix}".rstrip("/")

    def weaknesses(self) -> Sequence[str]:
        return []

    def list(self, folder: str) -> list[StoredFile]:
        key = self._key(folder)
        with self._named_errors(folder):
            objects = obstore.list_with_delimiter(self._bucket, key or None)["objects"]
        return [
            StoredFile(join(folder, meta["path"].rpartition("/")[2]), meta["size"], meta["last_modified"])
            for meta in sorted(objects, key=lambda meta: meta["path"])
            if meta["path"] != key   # the empty directory marker that web consoles create
        ]

    def read(self, path: str) -> bytes:
        return self.read_version(path)[0]

    def read_version(self, path: str) -> tuple[bytes, FileVersion]:
        with self._named_errors(path):
            found = obstore.get(self._bucket, self._key(path))
            return bytes(found.bytes()), _object_version(found.meta)

    def open(self, path: str) -> BinaryIO:
        with self._named_errors(path):
            size = obstore.head(self._bucket, self._key(path))["size"]
        return RangeReader.buffered(partial(self.read_range, path), size)

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`."""
        with self._named_errors(path):
            return bytes(obstore.get_range(self._bucket, self._key(path), start=start, end=end))

    def write(self, path: str, content: bytes) -> None:
        with self._named_errors(path):
            # One PUT: a broken multipart upload leaves parts that cost money and appear in no listing.
            obstore.put(self._bucket, self._key(path), content, use_multipart=False)

    def create(self, path: str, content: bytes) -> FileVersion | None:
        with contextlib.suppress(FileExistsError):
            return self._put_if(path, content, "create")
        return None

    def replace(self, path: str, content: bytes, version: FileVersion) -> FileVersion | None:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            return self._put_if(path, content, version.token)
        return None

    def _put_if(self, path: str, content: bytes, condition: Any) -> FileVersion:
        """Write under a condition. obstore does not retry that when the connection breaks, since it may have succeeded.

        Then our retry is refused, as if another process had written: callers read who it was.
        """
        for tries_left in reversed(range(_CONDITIONAL_TRIES)):
            try:
                with self._named_errors(path):
                    return _object_version(obstore.put(self._bucket, self._key(path), content, mode=condition))
            except OSError as error:
                if error.errno != errno.EIO or "error sending request" not in str(error) or not tries_left:
                    raise
                time.sleep(_RETRY_S)
        raise AssertionError("the last try returns or raises")

    def delete(self, *paths: str) -> None:
        for start in range(0, len(paths), _DELETED_AT_ONCE):
            keys = [self._key(path) for path in paths[start : start + _DELETED_AT_ONCE]]
            with contextlib.suppress(FileNotFoundError), self._named_errors(paths[start]):
                obstore.delete(self._bucket, keys if len(keys) > 1 else keys[0])

    def delete_tree(self, folder: str) -> None:
        with self._named_errors(folder):
            for metas in obstore.list(self._bucket, self._key(folder) or None):
                obstore.delete(self._bucket, [meta["path"] for meta in metas])

    def clean_temporary(self, *, deep: bool = False) -> None:
        """Nothing to do: a PUT writes an object whole or not at all."""

    @property
    def _bucket(self) -> ObjectStore:
        return open_bucket(self._bucket_uri, self._options)

    def _key(self, path: str) -> str:
        return join(self._prefix, path)

    @contextlib.contextmanager
    def _named_errors(self, path: str) -> Iterator[None]:
        """Turn the client's errors into the matching OSErrors."""
        name = f"{self.root}/{path}"
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, f"no such object or bucket ({first_line(error)})", name) from error
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(errno.EEXIST, first_line(error), name) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise PermissionError(errno.EACCES, f"access denied ({first_line(error)})", name) from error
        except BaseError as error:
            raise OSError(errno.EIO, first_line(error), name) from error


def _object_version(meta: Any) -> FileVersion:
    """What obstore compares: the etag on S3, the generation ("version") on GCS."""
    return FileVersion({name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None})

