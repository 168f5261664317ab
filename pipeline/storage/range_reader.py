"""An object read like a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

READ_AHEAD_BYTES = 1 << 20


class RangeReader(io.RawIOBase):
    """An object as a seekable file; each read is one ranged GET."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range = read_range
        self._size = size
        self._position = 0

    @classmethod
    def buffered(cls, read_range: Callable[[int, int], bytes], size: int) -> io.BufferedReader:
        """The same with read-ahead. read_range: bytes from a start to before an end. size: bytes in all."""
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
