"""A seekable file read through a window that adapts: small where a reader jumps, large where it reads on."""

from __future__ import annotations

import errno
import io
from types import TracebackType
from typing import BinaryIO, Self, cast

NEAR_BYTES = 16 << 10     # a jump over fewer bytes counts as reading on: another request costs more than these bytes


class Windowed:
    """The part of a file's interface that readers of archives use. A read within the window costs nothing.

    After a jump the window has `first_bytes`. Each time the reader goes on at its end it doubles, up to `most_bytes`.
    So the headers of a tar are read without its images, and a file that is read through takes few requests.
    size: of the file, bytes. Closing it closes the file below.
    """

    def __init__(self, file: BinaryIO, first_bytes: int, most_bytes: int) -> None:
        self._outer = file
        # Below a buffer of Python's is the file that makes a request for each read.
        self._file = cast(BinaryIO, getattr(file, "raw", file))
        self._first_bytes = self._window_bytes = first_bytes
        self._most_bytes = most_bytes
        self.size = self._file.seek(0, io.SEEK_END)
        self.closed = False
        self._position = self._start = 0
        self._window = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file below."""
        self.closed, self._window = True, b""
        self._outer.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning of the file")   # as of any file
        self._position = base + offset
        return self._position

    def read(self, n_bytes: int = -1) -> bytes:
        """The next n_bytes, all of them unless the file ends before."""
        end = self.size if n_bytes < 0 else min(self._position + n_bytes, self.size)
        pieces = []
        while self._position < end:
            at = self._position - self._start
            if not 0 <= at < len(self._window):
                self._fill(end - self._position)
                at = self._position - self._start
            piece = self._window[at : at + end - self._position]
            pieces.append(piece)
            self._position += len(piece)
        return b"".join(pieces)

    def _fill(self, wanted_bytes: int) -> None:
        end = self._start + len(self._window)
        reads_on = bool(self._window) and end <= self._position <= end + NEAR_BYTES
        n_bytes = min(2 * self._window_bytes, self._most_bytes) if reads_on else self._first_bytes
        start = end if reads_on else self._position
        over = self._position - start
        whole = over + max(n_bytes, min(wanted_bytes, self._most_bytes))
        self._window = b""            # stays empty if reading fails
        self._file.seek(start)
        window = _read_fully(self._file, min(whole, self.size - start))
        if len(window) <= over:
            raise EOFError(f"the file ends at byte {start + len(window):,} of {self.size:,}")
        self._window, self._start, self._window_bytes = window, start, n_bytes


def _read_fully(file: BinaryIO, n_bytes: int) -> bytes:
    """The next n_bytes; fewer at the end of the file. A raw file may return less than it is asked for."""
    first = file.read(n_bytes)
    pieces, missing = [first], n_bytes - len(first)
    while missing > 0 and (piece := file.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
