"""A private folder for temporary files. If a process is killed, the next run on this machine removes its folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.errors import UserError

_UNLOCKED, _PREFIX = "facelake-new-", "facelake-scratch-"


class ScratchFolder:
    """A folder below `tempfile.gettempdir()` that only this user can read. It exists until it is closed.

    The process holds a lock (flock) on the folder; the kernel releases it when the process ends. The folder gets its
    final name only once it is locked, so a folder with that name and no lock is abandoned. File systems without locks
    keep abandoned folders. Raises UserError where nothing can be written.
    """

    def __init__(self) -> None:
        try:
            _remove_abandoned()
            made = Path(tempfile.mkdtemp(prefix=_UNLOCKED))
        except OSError as error:
            raise UserError(
                f"no folder for temporary files can be written: {error}; set TMPDIR to one, or free space there"
            ) from None
        self._lock = os.open(made, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = made.rename(made.with_name(made.name.replace(_UNLOCKED, _PREFIX)))

    def close(self) -> None:
        """Delete the folder with its content."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):      # another user's folder, or already gone
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
