"""A private folder for temporary files; where kill -9 leaves one behind, the next run on this machine removes it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_UNLOCKED, _PREFIX = "facelake-new-", "facelake-scratch-"


class ScratchFolder:
    """A folder below `tempfile.gettempdir()` that this user alone can read, until it is closed.

    It is locked (flock) as long as its process lives, which the kernel sees to, and gets its final name only then: a
    folder of that name without a lock is abandoned. File systems without locks keep what is left behind.
    """

    def __init__(self) -> None:
        _remove_abandoned()
        made = Path(tempfile.mkdtemp(prefix=_UNLOCKED))
        self._lock = os.open(made, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = made.rename(made.with_name(made.name.replace(_UNLOCKED, _PREFIX)))

    def close(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):      # another user's, or one that is gone by now
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
