"""One file or object, opened for reading in pieces."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO

import obstore

from pipeline.storage import web
from pipeline.storage.clients import open_bucket
from pipeline.storage.uris import StoreOptions, is_addressable, is_http, is_local, local_path, split_uri

READ_AHEAD_BYTES = 1 << 20


class RangeReader(io.RawIOBase):
    """An object as a seekable file. Each read is one ranged GET.

    read_range: returns the bytes from a start to before an end. size: of the object, in bytes.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range = read_range
        self._size = size
        self._position = 0

    @classmethod
    def buffered(cls, read_range: Callable[[int, int], bytes], size: int) -> io.BufferedReader:
        """The same with READ_AHEAD_BYTES of read-ahead."""
        return io.BufferedReader(cls(read_range, size), READ_AHEAD_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        content = self._read_range(self._position, end)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def open_file(uri: str, options: StoreOptions) -> BinaryIO:
    """A local file or an object, seekable. The caller closes it. Raises UriError, OSError and the clients' errors."""
    if is_local(uri):
        return open(local_path(uri), "rb")   # noqa: PTH123
    if is_http(uri):
        return RangeReader.buffered(lambda start, end: web.read_part(uri, start, end - start), web.file_size(uri))
    bucket_uri, key = split_uri(uri)
    if not is_addressable(key):
        raise OSError(f"the client cannot read the key {key!r}: rename the object")
    store = open_bucket(bucket_uri, options)
    size = obstore.head(store, key)["size"]
    return RangeReader.buffered(
        lambda start, end: bytes(obstore.get_range(store, key, start=start, end=end)), size
    )
