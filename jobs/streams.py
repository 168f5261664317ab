"""Standard streams that outlive their reader: a log that nobody reads any more does not end the job."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def keep_streams() -> None:
    """Make stdout and stderr take what is written after their reader has gone, as with `| head`.

    Also opens the null device in place of closed ones: the next file that is opened would take their number, and
    messages of libraries would be written into it. Call it once, before the command starts.
    """
    for number in (0, 1, 2):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)      # takes the lowest number that is free
    sys.stdout = _lasting(sys.stdout, 1, is_log=False)
    sys.stderr = _lasting(sys.stderr, 2, is_log=True)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _lasting(stream: Any, number: int, *, is_log: bool) -> io.TextIOWrapper:
    """A stream like this one; it is None if it was closed when Python started."""
    raw = _LastingFile(number if stream else os.open(os.devnull, os.O_WRONLY), is_log=is_log)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors=stream.errors if stream else "backslashreplace",
        newline="\n",
        line_buffering=not stream or stream.line_buffering or stream.write_through,
    )


class _LastingFile(io.FileIO):
    """An open file that swallows what is written to it once its reader has gone.

    is_log: swallow every other fault too, such as a full disk. Other output must not be lost without a word.
    """

    def __init__(self, number: int, *, is_log: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._is_log = is_log
        self._is_terminal = self.isatty()

    def write(self, content: Any) -> int:
        """The number of bytes written, or swallowed."""
        try:
            return super().write(content)
        except BrokenPipeError:
            self._discard()
        except OSError:
            if not (self._is_log or self._is_terminal):     # a terminal that is gone answers with an I/O error
                self._discard()                             # else the flush at the exit fails again
                raise
        return memoryview(content).nbytes

    def _discard(self) -> None:
        """Send all that follows to the null device, also what libraries write past Python."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
